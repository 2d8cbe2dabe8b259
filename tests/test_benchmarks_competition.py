"""The benchmark on a competition's questions, on networks that are small enough to ask at once."""

import math

import numpy as np
import pytest
import torch

from adv_lib import exact, leaves, models
from adv_lib.threat import Ball
from benchmarks import competition, pages, tables


def network():
    """4-12-12-3 with weights that leave some units unstable."""
    model = models.mlp([4, 12, 12, 3], torch.Generator().manual_seed(12))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


@pytest.fixture
def file(tmp_path):
    """Four questions: the second image has a wrong class, the third needs a search."""
    model = network()
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 3
    layers = {}
    for i, layer in enumerate(part for part in model if hasattr(part, "weight")):
        layers |= {f"W{i}": layer.weight.detach().numpy(), f"b{i}": layer.bias.detach().numpy()}
    path = tmp_path / "mnist-256x2.npz"
    known = {"answer": ["open", "broken", "open", "robust"], "seconds": [math.nan, 6.0, math.nan, 7.0]}
    np.savez(path, x=x.numpy(), y=y.numpy(), eps=[0.05, 0.05, 0.3, 0.001], **layers, **known)
    return path


def test_a_file_is_the_network_in_float64_and_its_questions(file):
    found = competition.load(file)
    model = network().double()
    torch.testing.assert_close(found.model(found.x), model(found.x))
    assert found.x.dtype == torch.float64
    assert found.y.dtype == torch.int64
    assert found.answer[1] == "broken"
    assert found.seconds[3] == 7
    assert found.eps[2] == 0.3


def test_ladder_and_programs_give_the_answers_of_certify_which_the_competition_does_not_contradict(file):
    given = competition.load(file)
    ways = {
        name: [competition.ask(file, i, stages, 60) for i in range(4)]
        for name, stages in (("ladder", exact.LADDER), ("programs", exact.PROGRAMS))
    }
    for found in ways.values():
        for i, answer in enumerate(found):
            one = given.model, given.x[i : i + 1], given.y[i : i + 1]
            direct = exact.certify(*one, Ball(math.inf, given.eps[i], (0, 1)), progress=False)
            assert answer.status == direct.status[0] != "unknown"
        assert not competition.contradictions(found, given.answer)
        assert competition.contradictions(found, ["open", "robust", "open", "broken"]) == [1, 3]
        rows = competition.settled("256x2", found)
        assert sum(sum(row[2:]) for row in rows) == 4
        assert {row[1] for row in rows} <= set(exact.STAGES)


def test_what_came_after_a_limit_was_not_known_by_then():
    found = [
        competition.Answer("robust", "branches", 9, 31.0),
        competition.Answer("broken", "attack", 0, 2),
    ]
    assert [a.status for a in competition.within(found, 30)] == ["unknown", "broken"]
    assert [a.status for a in competition.within(found, 120)] == ["robust", "broken"]
    words, seconds = competition.words_and_seconds(competition.within(found, 30))
    assert competition.counted("256x2", "ladder", 30, words, seconds)[3:] == (0, 1, 1, "32", "16.0")


def test_every_score_finds_the_same_sign_and_counts_its_cases(file):
    given = competition.prepared(file, 2)
    assert len(given.c), "a question that the bounds leave open"
    signs = set()
    for function in competition.SCORES.values():
        found, seconds = competition.searched(given, 8, 500, score=function)
        signs.add(found.upper > 0)
        assert 1 <= found.nodes <= 500
        assert seconds > 0
        assert found.lower <= found.upper
    assert len(signs) == 1


def test_speeds_count_cases_a_second_and_memory(file):
    rate, before, most = competition.speed(competition.prepared(file, 2), 8, 500)
    assert rate > 0
    assert 0 < before <= most


@pytest.mark.slow
def test_a_fresh_process_answers_or_is_ended(file):
    found = competition.apart(competition.ask, file, 1, exact.LADDER, 60)
    assert found.status == "broken"
    assert competition.apart(_sleep, 60, limit=0.1) is None


def _sleep(seconds):
    import time

    time.sleep(seconds)


@pytest.mark.slow
def test_the_section_has_its_tables_and_a_target(file, monkeypatch):
    (file.parent / "mnist-256x4.npz").write_bytes(file.read_bytes())
    monkeypatch.setattr(competition, "folder", lambda: file.parent)
    monkeypatch.setattr(competition, "HARD", ("256x2", 2))
    monkeypatch.setattr(competition, "SCORED", ("256x2", (2,)))
    monkeypatch.setattr(competition, "TOGETHER", (1, 8))
    text = competition.section(None)
    assert [met for _, met in tables.verdicts(text)] == [True]
    assert text.count("\n| 256x") >= 8
    assert "contradict that of the competition? No." in text


def test_without_the_networks_the_part_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(competition, "folder", lambda: tmp_path)
    text = competition.section(None)
    assert "are not here" in text
    assert "|" not in text
    assert "competition" in pages.PARTS["bench"]
    assert leaves.TOGETHER in competition.TOGETHER
