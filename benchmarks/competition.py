"""Questions of the verification competition VNN-COMP 2021: the ladder, linear programs, the others."""

from __future__ import annotations

import math
import multiprocessing
import platform
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from adv_lib import bounds, branching, data, exact, leaves, models
from adv_lib.affine import affine_pieces
from adv_lib.threat import Ball

from . import tables, weight
from .timing import Timer

NETWORKS = ("256x2", "256x4")
LIMITS = (30, 120)  # seconds for a question
PROGRAMS_LIMIT = 30
GRACE = 1.25  # times the limit: then a process is ended
JOBS = 2  # questions at a time, each in a process with one thread
HARD, CASES, TOGETHER = ("256x2", 1), 2000, (1, 8, 64, 256)  # the question of the table of speeds
SCORED, ROOM = ("256x2", (3, 5)), 5000  # the questions of the table of scores, and cases for each
OTHERS = {  # of thirty questions, by the results of the competition; seconds they had for one: 120, 300
    "α,β-CROWN (GPU)": (30, 22),
    "oval (GPU)": (30, 17),
    "VeriNet (CPU)": (29, 18),
    "ERAN (GPU)": (29, 15),
    "Marabou (CPU)": (29, 16),
    "nnenum (CPU)": (28, 11),
    "Venus 2 (CPU)": (25, 14),
}
ABSENT = """## A competition's questions

The networks of VNN-COMP 2021 are not here: this part asks for `mnist-256x2.npz` and `mnist-256x4.npz` in
the folder `vnncomp` of the data, next to MNIST's.
"""
TEXT = """## A competition's questions

VNN-COMP 2021 asked of two networks for MNIST, 784-256-256-10 (256x2) and one with four hidden layers
(256x4), which were trained without robustness in mind: is image i robust for p = ∞ in the box, at
ε = 0.03 and 0.05? Here are {questions} of these questions for each. A question has one thread and {jobs}
are asked at a time, on {cpu}. The machine is {slower:.1f} times as slow as on the day by which the other
budgets are meant: the fixed work of the chapters' table took {work:.1f} milliseconds before and
{after:.1f} after, and {then:.1f} on 2026-11-27.

**Answers.** *Ladder* is `exact.certify` by its defaults, *programs* with `stages=exact.PROGRAMS`, which
was the default before; networks and images in float64. Each question is asked once with `seconds` =
{most}, and counts as answered within {least} if its answer came by then. A process that bounds hidden
units by linear programs long after the limit is ended: unknown. α,β-CROWN's time is that of the
competition, on a machine with a GPU, of which 6 to 9 seconds are its start.

{answers}

Does an answer contradict that of the competition? {contradictions}. Left open in {most} seconds:
{left}.

What settled the questions, or came last, at {most} seconds:

{stages}

Of all thirty questions that the competition asked of a network, its entrants answered:

{others}

**How fast cases are bounded**, in the first {cases:,} cases of a search for question {hard}, float64,
one thread, without what comes before the search; memory is what the search adds to the {idle} MB of a
fresh process.

{speeds}

**Which unit to split.** The search alone, on the same bounds of the hidden units, for the classes that
these bounds leave open, with at most {room:,} cases. *Spread* is u − l, *share* by how much a unit alone
keeps the bound below the network, and *price* what its upper line costs: the score of the package.

{scores}

{targets}
"""


class Questions(NamedTuple):
    """A network in float64, its images, and what the competition answered."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    eps: list[float]
    answer: list[str]
    seconds: list[float]


class Answer(NamedTuple):
    """What a process found: the status, the stage, the cases that it took and its seconds."""

    status: str
    stage: str
    nodes: int
    seconds: float


def folder() -> Path:
    """Where the networks are, if they are here."""
    return data.folder() / "vnncomp"


def load(path: Path) -> Questions:
    """The network and the questions of a file: W0, b0, W1, …, x, y, eps, answer, seconds."""
    with np.load(path) as file:
        sizes = [file["W0"].shape[1]]
        while f"W{len(sizes) - 1}" in file:
            sizes.append(len(file[f"b{len(sizes) - 1}"]))
        model = models.mlp(sizes).double()
        linears = [layer for layer in model if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for i, layer in enumerate(linears):
                layer.weight.copy_(torch.as_tensor(file[f"W{i}"]))
                layer.bias.copy_(torch.as_tensor(file[f"b{i}"]))
        x, y = (torch.as_tensor(file[name]) for name in ("x", "y"))
        rest = (file[name].tolist() for name in ("eps", "answer", "seconds"))
        return Questions(model.eval(), x.double(), y.long(), *rest)


# ---- processes ----


def apart(call: Callable, *arguments: object, limit: float = math.inf) -> object | None:
    """call(*arguments) in a fresh process with one thread; None if it takes more than `limit` seconds.

    The seconds count from when the process has imported what it needs.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_alone, args=(there, call, arguments), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()
        ended = here.poll(None if limit == math.inf else limit)
        return here.recv() if ended else None
    finally:
        process.kill()
        process.join()


def _alone(channel: object, call: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    channel.send("ready")
    channel.send(call(*arguments))


def memory() -> float:
    """The most memory that this process has had, in MB, on Linux.

    (What `resource` says begins with what the process had that started this one.)
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 2**10


# ---- answers ----


def ask(path: Path, i: int, stages: Sequence[str], seconds: float) -> Answer:
    """One question, in this process."""
    model, x, y, eps, *_ = load(path)
    ball, timer = Ball(math.inf, eps[i], (0, 1)), Timer()
    settings = {"stages": stages, "seconds": seconds, "jobs": 1, "progress": False}
    found = exact.certify(model, x[i : i + 1], y[i : i + 1], ball, **settings)
    return Answer(found.status[0], found.stage[0], int(found.nodes[0]), timer.clock())


def ask_all(path: Path, stages: Sequence[str], seconds: float) -> list[Answer]:
    """All questions of a file, JOBS at a time. What takes longer than `seconds` is unknown."""

    def one(i: int) -> Answer:
        found = apart(ask, path, i, stages, seconds, limit=GRACE * seconds)
        found = found or Answer("unknown", "ended", 0, GRACE * seconds)
        said = path.stem, i, found.status, found.stage, f"{found.nodes:,}", f"{found.seconds:.1f}"
        tables.printed(*said)
        return found

    questions = range(len(load(path).y))
    return Parallel(n_jobs=JOBS, prefer="threads")(delayed(one)(i) for i in questions)


def within(found: Sequence[Answer], seconds: float) -> list[Answer]:
    """What would have been known after so many seconds."""
    slow = Answer("unknown", "", 0, seconds)
    return [a if a.status != "unknown" and a.seconds <= seconds else slow for a in found]


def contradictions(found: Sequence[Answer], known: Sequence[str]) -> list[int]:
    """The questions to which the competition has another answer."""
    pairs = enumerate(zip(found, known, strict=True))
    return [i for i, (a, word) in pairs if {a.status, word} == {"robust", "broken"}]


def counted(name: str, way: str, limit: float, words: Sequence[str], seconds: Sequence[float]) -> tuple:
    """A row of the table of answers."""
    counts = [list(words).count(word) for word in exact.WORDS]
    return name, way, limit, *counts, f"{sum(seconds):.0f}", f"{median(seconds):.1f}"


def settled(name: str, found: Sequence[Answer]) -> list[tuple]:
    """How many questions each stage has settled, or came last at."""
    counts = Counter((a.stage, a.status) for a in found)
    stages = [stage for stage in (*exact.STAGES, "ended") if stage in {a.stage for a in found}]
    return [(name, stage, *(counts[stage, word] for word in exact.WORDS)) for stage in stages]


# ---- the search alone ----


class Search(NamedTuple):
    """One question as its search gets it."""

    pieces: list
    layers: list[bounds.Bounds]
    x: Tensor
    ball: Ball
    c: Tensor


def prepared(path: Path, i: int, device: str = "cpu") -> Search:
    """The bounds of the hidden units with slopes of their own, and the classes that these leave open."""
    model, x, y, eps, *_ = load(path)
    x, y, ball = x[i : i + 1].to(device), y[i : i + 1].to(device), Ball(math.inf, eps[i], (0, 1))
    model = model.to(device)
    with torch.no_grad():
        pieces = [piece.detach() for piece in affine_pieces(model, x.shape[1:], x.dtype)]
        layers = bounds.pre_activations(model, x, ball, "crown")
        layers = bounds.tightened(pieces, layers, x, ball.region(x))
        slopes = bounds.best_slopes(model, x, y, ball, layer_bounds=layers)
        given = {"layer_bounds": layers, "slopes": slopes}
        least = bounds.margins(model, x, y, ball, "crown", **given)[0]
    one = torch.eye(len(least)).to(x)
    return Search(pieces, layers, x, ball, one[y] - one[least <= exact.TOLERANCE])


def searched(
    given: Search, together: int, cases: int, **settings: object
) -> tuple[branching.Found, float]:
    """What a search of at most so many cases finds, and its seconds."""
    sample = torch.zeros(len(given.c), dtype=torch.int64, device=given.x.device)
    region = given.ball.region(given.x)
    torch.manual_seed(0)  # of a random score
    timer = Timer()
    evaluate = leaves.Leaves(given.pieces, given.layers, given.x, region, given.c, sample, **settings)
    start = [(math.inf, given.x[0].cpu().numpy())]
    roots = [range(len(given.c))]
    found = branching.search(evaluate, start, roots, width=together, node_limit=cases, sign=True)
    return found[0], timer.clock()


def speed(given: Search, together: int, cases: int) -> tuple[float, float, float]:
    """Cases a second, and the most memory of this process before the search and after it."""
    before = memory()
    found, seconds = searched(given, together, cases)
    return found.nodes / seconds, before, memory()


def random(view: leaves.View) -> list[Tensor]:
    """Any unit."""
    return [torch.rand_like(hat) for hat in view.hats]


SCORES = {"random": random, "spread": leaves.spread, "share": leaves.share, "price": leaves.price}


def scored(path: Path, i: int, score: str, cases: int) -> tuple[branching.Found, float]:
    """The search with a score, in this process."""
    return searched(prepared(path, i), leaves.TOGETHER, cases, score=SCORES[score])


# ---- tables ----


def answers(paths: dict[str, Path]) -> tuple[list[tuple], list[tuple], list[str], list[str]]:
    """Rows of the table of answers and of stages, contradictions, and what the ladder leaves open."""
    rows, stages, wrong, left = [], [], [], []
    for name, path in paths.items():
        known = load(path)
        ladder = ask_all(path, exact.LADDER, LIMITS[-1])
        programs = ask_all(path, exact.PROGRAMS, PROGRAMS_LIMIT)
        for limit in LIMITS:
            found = within(ladder, limit)
            rows.append(counted(name, "ladder", limit, *words_and_seconds(found)))
        found = within(programs, PROGRAMS_LIMIT)
        rows.append(counted(name, "programs", PROGRAMS_LIMIT, *words_and_seconds(found)))
        theirs = [LIMITS[-1] if math.isnan(took) else took for took in known.seconds]
        words = [
            "unknown" if math.isnan(s) else a for a, s in zip(known.answer, known.seconds, strict=True)
        ]
        rows.append(counted(name, "α,β-CROWN, GPU", LIMITS[-1], words, theirs))
        stages += settled(name, ladder)
        for way, found in (("ladder", ladder), ("programs", programs)):
            wrong += [f"{name} number {i} by the {way}" for i in contradictions(found, known.answer)]
        open_ = [str(i) for i, a in enumerate(ladder) if a.status == "unknown"]
        left.append(f"of {name} {', '.join(open_) or 'none'}")
    return rows, stages, wrong, left


def words_and_seconds(found: Sequence[Answer]) -> tuple[list[str], list[float]]:
    """The statuses and the seconds."""
    return [a.status for a in found], [a.seconds for a in found]


def speeds(path: Path, i: int, cases: int = CASES) -> tuple[str, float]:
    """The table of speeds, and the memory before the search."""
    given, idle, rows = prepared(path, i), 0.0, []
    gpu = prepared(path, i, "cuda") if torch.cuda.is_available() else None
    for together in TOGETHER:
        rate, idle, most = apart(speed, given, together, cases)
        more = [f"{speed(gpu, together, cases)[0]:,.0f}"] if gpu else []
        rows.append(tables.printed(together, f"{rate:,.0f}", f"{most - idle:.0f}", *more))
    head = ("cases at a time", "cases a second", "memory, MB", *(["cases a second, GPU"] if gpu else []))
    return tables.table(head, rows), idle


def scores(path: Path, questions: Sequence[int], cases: int = ROOM) -> str:
    """The table of scores."""
    rows = []
    for name in SCORES:
        cells = []
        for i in questions:
            found, seconds = apart(scored, path, i, name, cases)
            whole = "" if found.nodes < cases else "at least "
            cells += [f"{whole}{found.nodes:,}", f"{seconds:.1f}"]
        rows.append(tables.printed(name, *cells))
    head = [f"number {i}, {what}" for i in questions for what in ("cases", "seconds")]
    return tables.table(("score", *head), rows)


def cpu() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unknown processor"


def section(_: data.Data) -> str:
    """The tables, or a sentence where the networks are not here. MNIST is not needed."""
    paths = {name: folder() / f"mnist-{name}.npz" for name in NETWORKS}
    if not all(path.exists() for path in paths.values()):
        return ABSENT
    fixed = weight.fixed_work()
    work = fixed()
    table_scores = scores(paths[SCORED[0]], SCORED[1])
    table_speeds, idle = speeds(paths[HARD[0]], HARD[1])
    rows, stages, wrong, left = answers(paths)
    after = fixed()
    none = tables.Target("no answer contradicts the competition's", "both", str(len(wrong)), not wrong)
    head = ("network", "by", "limit, s", *exact.WORDS, "seconds in all", "median")
    return TEXT.format(
        questions=len(load(paths[NETWORKS[0]]).y),
        jobs=JOBS,
        cpu=cpu(),
        slower=(work + after) / 2 / weight.WORK,
        work=1e3 * work,
        after=1e3 * after,
        then=1e3 * weight.WORK,
        least=LIMITS[0],
        most=LIMITS[-1],
        answers=tables.table(head, rows),
        contradictions=f"Yes: {'; '.join(wrong)}" if wrong else "No",
        left=", ".join(left),
        stages=tables.table(("network", "stage", *exact.WORDS), stages),
        others=tables.table(
            ("", *(f"{name}, {s} s" for name, s in zip(NETWORKS, (120, 300), strict=True))),
            [(name, *counts) for name, counts in OTHERS.items()],
        ),
        cases=CASES,
        hard=f"{HARD[1]} of {HARD[0]}",
        idle=f"{idle:.0f}",
        speeds=table_speeds,
        room=ROOM,
        scores=table_scores,
        targets=tables.targets([none]),
    )
