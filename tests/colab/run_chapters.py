"""Run every chapter of a folder in this Python's kernel, from the current directory, and time it.

    run_chapters.py CHAPTERS [REPORT] [--times FILE --installed SECONDS]

The exit code is 1 when a chapter fails; its error goes to REPORT. FILE gets the times as a part of the
page of benchmarks. The chapters must find the installed adv_lib and not the working tree, so start this
elsewhere.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

HOUR = 3600  # seconds
FROM_THE_PACKAGE = """\
import adv_lib
assert "-packages" in adv_lib.__file__, f"not the installed package: {adv_lib.__file__}"
"""


def run(path: Path) -> str | None:
    """Execute one notebook; returns what went wrong, or None."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FROM_THE_PACKAGE))
    patience = {"timeout": None, "startup_timeout": HOUR, "iopub_timeout": HOUR}
    try:
        NotebookClient(notebook, kernel_name="python3", **patience).execute()
    except (CellExecutionError, DeadKernelError) as error:
        return str(error)
    return None


def times_page(seconds: dict[str, float], installed: str) -> dict:
    """The times as a result file of benchmarks/results."""
    version = metadata.version
    lines = [
        "## The chapters with Colab's versions",
        "",
        "Every chapter from top to bottom in a kernel, with the versions that Colab had on the day of",
        "the file in `tests/colab`, and with `adv_lib` installed from a wheel, as the first cell of a",
        f"chapter does. That took {installed} seconds here; Colab's also downloads the repository. The",
        "same environment runs the tests of the sliders, those of pages and live ones. Seconds by the",
        "clock. No target was set.",
        "",
        "| chapter | seconds |",
        "|---|---:|",
        *(f"| {name} | {took:.0f} |" for name, took in seconds.items()),
        f"| **all** | **{sum(seconds.values()):.0f}** |",
    ]
    return {
        "date": str(datetime.date.today()),
        "machine": f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": version("torch").split("+")[0],
        "libraries": [f"{name} {version(name)}" for name in ("ipywidgets", "ipython", "numpy")],
        "figures": [],
        "text": lines,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("chapters", type=Path)
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--times", type=Path)
    parser.add_argument("--installed")
    options = parser.parse_args()
    errors, seconds = {}, {}
    chapters = sorted(options.chapters.glob("*.ipynb"))
    if not chapters:
        sys.exit(f"No chapter in {options.chapters}.")
    for path in chapters:
        start = time.perf_counter()
        error = run(path)
        seconds[path.stem] = time.perf_counter() - start
        mark = "ok    " if error is None else "FAILED"
        print(f"{mark} {path.name}  {seconds[path.stem]:.1f} s", flush=True)
        if error is not None:
            errors[path.name] = error
            print(error, file=sys.stderr)
    if options.report:
        text = "\n\n".join(f"## {name}\n```\n{error}\n```" for name, error in errors.items())
        options.report.write_text(text)
    if options.times and not errors:
        page = json.dumps(times_page(seconds, options.installed), indent=1, ensure_ascii=False)
        options.times.write_text(page + "\n", "utf-8")
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
