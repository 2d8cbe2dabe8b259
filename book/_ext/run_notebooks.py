"""Run the book's notebooks side by side, and keep what they print and draw.

    run_notebooks.py [N]    runs every notebook that is not kept, N at a time (make book)

MyST-NB fills the pages from jupyter-cache, which knows a notebook by its code cells. The cache's folder
is named after everything else that decides what a cell shows, the package and the installed versions, so
no page shows what other code has computed. What fails is not kept.
"""

import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from hashlib import sha256
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import nbformat
from chapter_cells import references, to_book
from filelock import FileLock
from joblib import cpu_count
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from sphinx.errors import SphinxError
from sphinx_external_toc.parsing import parse_toc_yaml
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "_build/executed"
HOUR = 3600  # seconds
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
KERNEL = ONE_THREAD | {"ADV_LIB_PAGES": "1"}  # what each that fills a page has in its environment
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# ---- what runs, and what is kept of it ----


def pages() -> list[Path]:
    """The files of the table of contents, in its order."""
    names = [ROOT / name for name in parse_toc_yaml(ROOT / "_toc.yml")]
    return [next(filter(Path.exists, (n.with_suffix(s) for s in (".ipynb", ".md")))) for n in names]


def notebook(page: Path) -> NotebookNode | None:
    """The page as the book reads it, or None if nothing in it runs."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return nbformat.reads(json.dumps(to_book(json.loads(text))), as_version=4)
    if is_myst_markdown_notebook(text):
        return read_myst_markdown_notebook(references(text), path=page)
    return None


def code(nb: NotebookNode) -> list[NotebookNode]:
    """The code cells: the n-th is In [n] in Jupyter."""
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def fingerprint() -> str:
    """Of every file of the package, Python, and the versions of all that is installed."""
    package = Path(find_spec("adv_lib").origin).parent
    files = [f for f in sorted(package.rglob("*")) if f.is_file() and "__pycache__" not in f.parts]
    found = sha256()
    for file in files:
        found.update(f"{file.relative_to(package)} {sha256(file.read_bytes()).hexdigest()}\n".encode())
    installed = distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    versions = sorted({f"{each.name} {each.version}" for each in installed})
    found.update("\n".join([platform.python_version(), *versions]).encode())
    return found.hexdigest()[:16]


@cache
def store() -> JupyterCacheAbstract:
    """The cache for this package with these versions; those for others are deleted."""
    folder = KEPT / fingerprint()
    folder.mkdir(parents=True, exist_ok=True)
    for other in set(KEPT.iterdir()) - {folder}:
        shutil.rmtree(other, ignore_errors=True)
    return get_cache(folder)


def lock() -> FileLock:
    """One process at a time writes to the cache."""
    return FileLock(store().path / ".lock")


def kept(nb: NotebookNode) -> NotebookNode | None:
    """The notebook with its outputs, if the same code has run with this package and these versions."""
    with lock():
        try:
            return store().merge_match_into_notebook(nb)[1]
        except KeyError:
            return None


def keep(nb: NotebookNode, page: Path) -> None:
    """Keep the outputs of a notebook that ran without an error, unless the package changed meanwhile."""
    if fingerprint() != store().path.name:
        return
    with lock():
        bundle = CacheBundleIn(nb, str(page))
        store().cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


# ---- running ----


class NotebookError(Exception):
    """A cell raised an error, or wrote to stderr."""

    def __init__(self, cell: int, text: str):
        super().__init__(f"cell {cell}: {text}")
        self.cell, self.text = cell, text


def execute(nb: NotebookNode, folder: Path, env: dict[str, str] = KERNEL) -> NotebookNode:
    """Run the notebook in a fresh kernel in `folder`; it fills in the outputs, whatever time it takes.

    Streams are merged, so that the time between two lines leaves no trace. The kernel's messages are
    encrypted, or it would warn that they are not.
    """
    client = NotebookClient(
        nb,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout=None,
        startup_timeout=HOUR,
        iopub_timeout=HOUR,
        raise_on_iopub_timeout=True,
        record_timing=False,
        coalesce_streams=True,
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
    )
    try:
        client.execute(env=os.environ | env)
    except CellExecutionError as error:
        raised = [o for cell in code(nb) for o in cell.outputs if o.output_type == "error"]
        lines = [line for each in raised for line in each.traceback]
        raise NotebookError(client.code_cells_executed, "\n".join(lines) or error.traceback) from None
    except Exception as error:  # the kernel died, or did not start
        raise NotebookError(client.code_cells_executed, f"{type(error).__name__}: {error}") from error
    for cell in code(nb):
        if warned := "".join(o.text for o in cell.outputs if o.get("name") == "stderr"):
            raise NotebookError(cell.execution_count, f"{cell.source}\n\nwrote to stderr:\n\n{warned}")
    return nb


def executed(page: Path) -> NotebookNode:
    """A page with its outputs: the kept ones, or it runs now."""
    nb = notebook(page)
    if found := kept(nb):
        return found
    keep(execute(nb, page.parent), page)
    return nb


def run_all(files: list[Path], at_once: int) -> bool:
    """Run the notebooks among `files` that are not kept, and say what happens; whether all is well."""
    notebooks = {file: nb for file in files if (nb := notebook(file))}
    missing = {file: nb for file, nb in notebooks.items() if not kept(nb)}
    if not missing:
        return True
    began = time.monotonic()
    already = len(notebooks) - len(missing)
    say(f"== Running {count(missing)}, {at_once} at a time; {already} unchanged ==")
    failed = run_side_by_side(missing, at_once)
    took = time.monotonic() - began
    if failed:
        where = ", ".join(f"{name(file)} (code cell {error.cell})" for file, error in failed.items())
        say(f"== {len(failed)} of {count(missing)} failed after {took:.0f} s ==")
        say(f"Mend {where}, then type make book: it runs only what failed or changed.")
    else:
        say(f"== Ran {count(missing)} in {took:.0f} s ==")
    return not failed


def run_side_by_side(notebooks: dict[Path, NotebookNode], at_once: int) -> dict[Path, NotebookError]:
    """Run each, the longest code first, and keep what goes well; the errors of the others."""
    length = {file: sum(len(cell.source) for cell in code(nb)) for file, nb in notebooks.items()}
    order = sorted(notebooks, key=length.get, reverse=True)
    left, failed = len(notebooks), {}
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(seconds, file, notebooks[file]): file for file in order}
        try:
            for future in as_completed(running):
                file, left = running[future], left - 1
                if error := future.exception():
                    failed[file] = error
                    text = plain(error.text).strip()
                    say(f"   {name(file)}: FAILED in code cell {error.cell}; {left} left\n\n{text}\n")
                else:
                    keep(notebooks[file], file)
                    say(f"   {name(file)}: done in {future.result():.0f} s; {left} left")
        except KeyboardInterrupt:
            say("== Stopped; what was done is kept ==")
            os._exit(130)  # at once: a kernel without its parent ends itself
    return failed


def seconds(file: Path, nb: NotebookNode) -> float:
    """Run a notebook, and say when it starts; the seconds that it took."""
    say(f"   {name(file)}: started")
    start = time.monotonic()
    execute(nb, file.parent)
    return time.monotonic() - start


def name(file: Path) -> str:
    """chapters/01_linear_models."""
    return f"{file.parent.name}/{file.stem}"


def count(notebooks: dict) -> str:
    """1 notebook, 2 notebooks."""
    return f"{len(notebooks)} notebook{'s' * (len(notebooks) != 1)}"


def plain(traceback: str) -> str:
    """In colour for people, without it for files."""
    return traceback if sys.stdout.isatty() else COLOUR.sub("", traceback)


def say(line: str) -> None:
    """At once, for whoever waits."""
    sys.stdout.write(f"{line}\n")  # in one piece: threads share the terminal
    sys.stdout.flush()


# ---- Sphinx ----


def run_before_reading(app, env, docnames: list[str]) -> None:
    """Run what the pages to be read need, which `make book` has done before."""
    if not run_all([Path(env.doc2path(docname)) for docname in docnames], cpu_count()):
        raise SphinxError("a notebook failed: see above")


def fill_from_the_store(app, config) -> None:
    """Tell MyST-NB where the outputs are kept, and what a page needs that it has to run itself."""
    config.nb_execution_cache_path = str(store().path)
    os.environ.update(KERNEL)  # a page that was edited since `run_before_reading` is not among the kept


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("config-inited", fill_from_the_store)
    app.connect("env-before-read-docs", run_before_reading)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main(at_once: int) -> int:
    """Run what is not kept of the book; the exit code."""
    notebooks = {page: nb for page in pages() if (nb := notebook(page))}
    if all(map(kept, notebooks.values())):
        say(f"== {count(notebooks)} unchanged: nothing to run ==")
    return int(not run_all(list(notebooks), at_once))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else cpu_count()))
