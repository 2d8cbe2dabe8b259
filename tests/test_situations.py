"""What users report of such libraries does not happen here, whether or not the benchmarks are run."""

import pytest

from benchmarks import situations


@pytest.mark.parametrize("situation", situations.situations(), ids=lambda situation: situation.tried)
def test_what_comes_out_is_right(situation):
    text, right = situations.outcome(situation)
    assert right, text
