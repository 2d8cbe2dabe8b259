"""The attack on a photograph, which no page of the book runs: with random weights, and offline."""

from itertools import dropwhile, takewhile
from pathlib import Path
from urllib.error import URLError

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

CHAPTER = Path(__file__).parents[2] / "chapters/00_introduction.ipynb"
FILE = ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]


def cells_of_the_photograph(photograph):
    """The set-up, the parameters with a photograph, and the code of the section."""
    cells = nbformat.read(CHAPTER, as_version=4).cells
    _, imports, parameters, *_ = (cell.source for cell in cells if cell.cell_type == "code")
    assert parameters.endswith("PHOTOGRAPH = None")
    goal = next(cell.source for cell in cells if "def towards" in cell.source)
    rest = dropwhile(lambda cell: not cell.source.startswith("## On a photograph"), cells)
    next(rest)
    section = takewhile(lambda cell: not cell.source.startswith("## "), rest)
    return [
        imports,
        parameters.replace("None", repr(photograph)),
        goal.partition("\n\n\n")[0],
        *(cell.source for cell in section if cell.cell_type == "code"),
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the section with an own folder for downloads: what it defined, and the figures it showed."""
    monkeypatch.setenv("ADV_LIB_DATA", str(tmp_path))
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))

    def run(photograph):
        names = {}
        for source in cells_of_the_photograph(photograph):
            exec(source, names)
        return names, shown

    yield run
    plt.close("all")


def test_the_section_attacks_a_photograph_within_two_levels_and_shows_it(run, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(resnet18().state_dict(), tmp_path / FILE)
    names, shown = run("flower")
    assert len(shown) == 2
    for figure in shown:
        before, _, after = (torch.tensor(ax.images[0].get_array()) for ax in figure.axes)
        change = (after - before).abs().max()
        assert 1.9 / 255 < change <= 2 / 255 + 1e-6
    assert names["photo"].min() >= 0  # the photograph itself, not normalised
    answers = [figure.axes[2].get_title() for figure in shown]
    assert all(answer.endswith("%") for answer in answers)


def test_offline_the_section_says_what_to_do_and_raises_nothing(run, monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    names, shown = run("china")
    assert shown == []
    assert names["resnet"] is None
    said = [line for line in capsys.readouterr().out.splitlines() if "Downloading" not in line]
    assert len(said) == 1
    assert "connect to the internet" in said[0]
    assert FILE in said[0]
