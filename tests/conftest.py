"""What all tests share: one thread, no window, the same random examples in every run."""

import os
import re
from pathlib import Path

import matplotlib
import pytest
import torch
from evidence import pytest_terminal_summary  # noqa: F401
from hypothesis import HealthCheck, settings

from adv_lib import data

matplotlib.use("Agg")
torch.set_num_threads(1)

# No test depends on the clock.
quiet = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", max_examples=100, derandomize=True, **quiet)
settings.register_profile("explore", max_examples=2000, **quiet)  # pytest --hypothesis-profile=explore
settings.load_profile("fixed")

BESIDE = Path(__file__).parents[2] / "shared" / "data"
DATA = Path(os.environ.get("ADV_LIB_DATA") or BESIDE)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def mnist():
    """The real MNIST, from $ADV_LIB_DATA or from shared/data beside the repository."""
    if not (DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {DATA}: set ADV_LIB_DATA to a folder that holds MNIST/raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADV_LIB_DATA", str(DATA))
        return data.load("mnist")


def pytest_collection_modifyitems(items):
    """Note on each test of a theorem which one it tries to break."""
    for item in items:
        item.user_properties += [
            ("theorems tested", mark.args[0]) for mark in item.iter_markers("theorem")
        ]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadgroup, all tests of a page or chapter share a process, which loads it once."""
    from xdist.scheduler import LoadScopeScheduling  # Colab has none

    class OnePlace(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = re.search(r"\[.*?([\w/]+\.html|\d\d_\w+)", nodeid)
            return shared[1] if shared else nodeid

    return OnePlace(config, log) if config.getvalue("dist") == "loadgroup" else None
