"""Run every chapter of a folder in this Python's kernel, from the current directory, and time it.

    run_chapters.py CHAPTERS [REPORT]     exit code 1 when a chapter fails; its error goes to REPORT

The chapters must find the installed adv_lib and not the working tree, so start this elsewhere.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FROM_THE_PACKAGE = """\
import adv_lib
assert "-packages" in adv_lib.__file__, f"not the installed package: {adv_lib.__file__}"
"""


def run(path: Path) -> str | None:
    """Execute one notebook; returns what went wrong, or None."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FROM_THE_PACKAGE))
    try:
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    return None


def main(folder: str, report: str | None = None) -> int:
    errors = {}
    chapters = sorted(Path(folder).glob("*.ipynb"))
    if not chapters:
        sys.exit(f"No chapter in {folder}.")
    for path in chapters:
        start = time.perf_counter()
        error = run(path)
        seconds = time.perf_counter() - start
        print(f"{'ok    ' if error is None else 'FAILED'} {path.name}  {seconds:.1f} s", flush=True)
        if error is not None:
            errors[path.name] = error
            print(error, file=sys.stderr)
    if report:
        text = "\n\n".join(f"## {name}\n```\n{error}\n```" for name, error in errors.items())
        Path(report).write_text(text)
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
