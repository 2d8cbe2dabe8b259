"""The book's public address: one place states it, one command moves it, nothing disagrees."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com"  # apart, so that no address in this file is one
CHAPTERS = sorted(ROOT.glob("chapters/*.ipynb"))

spec = importlib.util.spec_from_file_location("repository", ROOT / "book/_tools/repository.py")
repository = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repository)


@pytest.fixture(scope="module")
def texts():
    return repository.text_files(ROOT)


def cells(text: str, tag: str) -> list[str]:
    """The sources of a notebook's cells that carry `tag`."""
    return [
        "".join(cell["source"])
        for cell in json.loads(text)["cells"]
        if tag in cell["metadata"].get("tags", [])
    ]


def test_no_place_disagrees_with_the_address_in_the_configuration():
    assert repository.disagreements(ROOT) == []


def test_every_chapter_has_the_same_install_cell_and_it_names_the_address(texts):
    url, _ = repository.declared(texts)
    installs = [cells(texts[f"chapters/{path.name}"], "install") for path in CHAPTERS]
    assert len({tuple(install) for install in installs}) == 1
    (source,) = installs[0]
    assert f"pip install --quiet --no-deps git+{url}" in source.splitlines()[-1]


def test_the_install_cell_does_nothing_outside_colab(texts):
    (source,) = cells(texts[f"chapters/{CHAPTERS[0].name}"], "install")
    plain = source.replace("%pip", "raise AssertionError  # ")
    exec(plain)


def test_every_launch_link_leads_to_a_tracked_file_and_every_chapter_has_its_own(texts):
    url, branch = repository.declared(texts)
    prefix = url.replace("https://github.com", "https://colab.research.google.com/github")
    pattern = re.compile(re.escape(f"{prefix}/blob/{branch}/") + r"([^\s)\"\\#>]+)")
    links = {name: pattern.findall(text) for name, text in texts.items()}
    missing = {
        (name, target) for name, found in links.items() for target in found if target not in texts
    }
    assert not missing
    for path in CHAPTERS:
        assert f"chapters/{path.name}" in links[f"chapters/{path.name}"]


@pytest.fixture
def copy(texts, tmp_path):
    """A scratch copy of the repository's text files, with git around it."""
    for name, text in texts.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def test_after_a_fork_nothing_of_the_old_address_remains_and_notebooks_keep_their_format(copy, texts):
    old_owner, old_repo = repository.declared(texts)[0].split("/")[-2:]
    repository.fork(copy, f"{GITHUB}/Some-One/a.fork_2")
    assert repository.disagreements(copy) == []
    forked = repository.text_files(copy)
    assert forked.keys() == texts.keys()
    assert repository.declared(forked)[0] == f"{GITHUB}/Some-One/a.fork_2"
    for name, text in forked.items():
        assert f"{old_owner}/{old_repo}".lower() not in text.lower(), name
        assert f"{old_owner}.github.io" not in text.lower(), name
        assert text.count("\n") == texts[name].count("\n"), name
        if name.endswith(".ipynb"):
            json.loads(text)


def test_a_fork_and_the_way_back_change_nothing(copy, texts):
    url, _ = repository.declared(texts)
    repository.fork(copy, f"{GITHUB}/someone/fork")
    repository.fork(copy, url)
    assert repository.text_files(copy) == texts


def test_a_chapter_merged_from_another_repository_is_a_disagreement(copy, texts):
    chapter = copy / "chapters" / CHAPTERS[0].name
    url, _ = repository.declared(texts)
    chapter.write_text(chapter.read_text().replace(url, f"{GITHUB}/up/stream"))
    places = repository.disagreements(copy)
    assert places
    assert all(place.startswith("chapters/") for place in places)
    repository.fork(copy, url)
    assert repository.text_files(copy) == texts


def test_links_to_other_repositories_are_left_alone(copy):
    page = copy / "book" / "other.md"
    page.write_text("https://github.com/pytorch/pytorch https://pytorch.github.io/vision\n")
    before = page.read_text()
    repository.fork(copy, f"{GITHUB}/someone/fork")
    assert page.read_text() == before


def test_an_address_that_is_no_repository_is_refused(capsys):
    assert repository.main("https://example.org/you/fork") == 2
    assert "Not the address" in capsys.readouterr().err


def test_the_package_and_the_citation_state_the_same_version(texts):
    package = re.search(r'^version = "(.+)"$', texts["pyproject.toml"], re.M)[1]
    assert re.search(r"^version: (.+)$", texts["CITATION.cff"], re.M)[1] == package
