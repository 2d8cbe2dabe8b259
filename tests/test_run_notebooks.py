"""The runner of the book's notebooks: what runs, what is kept, and what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import run_notebooks

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(ROOT.glob("chapters/*.ipynb"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder for chapters, and a cache of its own."""
    monkeypatch.setattr(run_notebooks, "KEPT", tmp_path / "executed")
    run_notebooks.store.cache_clear()
    yield tmp_path
    run_notebooks.store.cache_clear()


def write(path: Path, *cells: str) -> Path:
    """A notebook of these code cells, as a chapter is stored."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    path.write_text(nbformat.writes(nb), encoding="utf-8")
    return path


def lines(capsys) -> list[str]:
    """What was printed since the last call."""
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_in_the_book_what_its_author_wrote(page):
    stored = [c for c in json.loads(page.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    cells = run_notebooks.code(run_notebooks.notebook(page))
    for cell, own in zip(cells, stored, strict=True):
        assert cell.source == re.sub(r"\A# @title.*\n", "", "".join(own["source"]))


def test_every_page_of_the_contents_is_found_and_those_without_code_do_not_run():
    pages = run_notebooks.pages()
    assert set(CHAPTERS) <= set(pages)
    running = {page.name for page in pages if run_notebooks.notebook(page)} - {c.name for c in CHAPTERS}
    assert running == {"index.md", "errata.md"}


def test_an_error_names_its_cell_and_the_other_notebooks_are_kept(folder, capsys):
    bad = write(folder / "01_bad.ipynb", "x = 1", "1 / 0", "x")
    warns = write(folder / "02_warns.ipynb", "import sys", "print('careful', file=sys.stderr)")
    good = write(folder / "03_good.ipynb", "print('a')", "print(1, flush=True); print(2)\n3")
    assert not run_notebooks.run_all([bad, warns, good], at_once=2)
    said = lines(capsys)
    assert said[0] == "== Running 3 notebooks, 2 at a time; 0 unchanged =="
    for page in (bad, warns, good):
        assert f"   {folder.name}/{page.stem}: started" in said
    assert sum("FAILED in code cell 2" in line for line in said) == 2
    assert sum(line == "ZeroDivisionError: division by zero" for line in said) == 1
    assert "careful" in said
    assert sum("03_good: done in" in line for line in said) == 1
    assert said[-1].startswith("Mend ")
    assert all(f"{page.stem} (code cell 2)" in said[-1] for page in (bad, warns))

    kept = {page.stem: run_notebooks.kept(run_notebooks.notebook(page)) for page in (bad, warns, good)}
    assert kept["01_bad"] is None
    assert kept["02_warns"] is None
    first, second = run_notebooks.code(kept["03_good"])
    assert [o.text for o in first.outputs] == ["a\n"]
    assert [o.get("text", o.get("data")) for o in second.outputs] == ["1\n2\n", {"text/plain": "3"}]

    write(bad, "x = 1", "2 / 1", "x")
    assert run_notebooks.run_all([bad, good], at_once=2)
    assert lines(capsys)[0] == "== Running 1 notebook, 2 at a time; 1 unchanged =="
    assert run_notebooks.run_all([bad, good], at_once=2)
    assert lines(capsys) == []


def test_a_notebook_whose_kernel_dies_fails_in_its_cell(folder, capsys):
    page = write(folder / "01_dies.ipynb", "x = 1", "import os; os._exit(1)")
    assert not run_notebooks.run_all([page], at_once=1)
    said = lines(capsys)
    assert sum("FAILED in code cell 2" in line for line in said) == 1
    assert any("DeadKernelError" in line for line in said)


def test_another_package_or_another_version_has_another_cache_and_the_old_one_is_deleted(
    folder, monkeypatch
):
    (folder / "adv_lib").mkdir()
    (folder / "adv_lib/__init__.py").write_text("")
    monkeypatch.setattr(
        run_notebooks,
        "find_spec",
        lambda _: type("Spec", (), {"origin": folder / "adv_lib/__init__.py"}),
    )
    first = run_notebooks.store().path
    (folder / "adv_lib/weights.pt").write_bytes(b"1")
    run_notebooks.store.cache_clear()
    second = run_notebooks.store().path
    monkeypatch.setattr(run_notebooks, "distributions", lambda path: [])
    run_notebooks.store.cache_clear()
    third = run_notebooks.store().path
    assert len({first, second, third}) == 3
    assert list(run_notebooks.KEPT.iterdir()) == [third]


def test_every_program_finds_the_same_cache_from_wherever_it_starts(tmp_path):
    program = "import run_notebooks; print(run_notebooks.fingerprint())"
    places = [str(Path(run_notebooks.__file__).parent), os.environ.get("PYTHONPATH", "")]
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == run_notebooks.fingerprint()


def test_a_page_edited_while_the_book_is_built_runs_as_the_others_do(folder, monkeypatch):
    for name in run_notebooks.KERNEL:
        monkeypatch.setenv(name, "")  # is put back at the end
    run_notebooks.fill_from_the_store(None, SimpleNamespace())
    assert {name: os.environ[name] for name in run_notebooks.KERNEL} == run_notebooks.KERNEL
