"""nbval runs the chapters, without a clock, and what it gets is what the book shows."""

import os
from pathlib import Path
from queue import Empty

import nbval.plugin
import pytest
import run_notebooks
from evidence import pytest_terminal_summary  # noqa: F401
from nbval.kernel import RunningKernel

os.environ.update(run_notebooks.KERNEL)  # which kernels inherit
LOST = "clear_output", "update_display_data"  # nbval does not follow these


class PatientKernel(RunningKernel):
    """A kernel that is waited for as long as it lives, whatever time limit nbval names."""

    def get_message(self, stream, timeout=None):
        """The next message, unless the kernel dies before."""
        while self.is_alive():
            try:
                message = super().get_message(stream, timeout=1)
            except Empty:
                continue
            if message["msg_type"] in LOST:
                raise RuntimeError(
                    f"nbval cannot keep what {message['msg_type']} does to the page"
                )
            return message
        raise RuntimeError("the kernel died")

    def _ensure_iopub_up(self):
        """Ask until something comes back on the channel of outputs; nbval would give up after 30 s."""
        while True:
            self.kc.kernel_info(reply=True)
            try:
                return self.kc.get_iopub_msg(timeout=1)
            except Empty:
                continue


def pytest_configure(config):
    """Let nbval start its kernels patiently."""
    config.option.nbval_kernel_startup_timeout = run_notebooks.HOUR
    nbval.plugin.RunningKernel = PatientKernel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A cell that warns fails; after the last one of a chapter its outputs are kept for the book."""
    result = yield
    if isinstance(item, nbval.plugin.IPyNbCell):
        if warned := "".join(
            o.text for o in item.test_outputs if o.get("name") == "stderr"
        ):
            item.raise_cell_error("The cell wrote to stderr", warned)
        ran = vars(item.parent).setdefault("ran", [])
        ran.append(item)
        if len(ran) == len(run_notebooks.code(item.parent.nb)):
            keep(item.parent)
            item.user_properties.append(
                ("chapters run as their author has them", item.parent.name)
            )
    return result


def keep(chapter: nbval.plugin.IPyNbFile) -> None:
    """Keep the outputs of a chapter whose cells have all passed."""
    page = Path(chapter.path)
    nb = run_notebooks.notebook(page)
    nb.metadata["language_info"] = chapter.kernel.kc.kernel_info(reply=True)[
        "content"
    ]["language_info"]
    cells = run_notebooks.code(nb)
    for number, (cell, item) in enumerate(
        zip(cells, chapter.ran, strict=True), start=1
    ):
        cell.execution_count, cell.outputs = number, item.test_outputs
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number  # nbval's kernel does not count
    run_notebooks.keep(nb, page)
