"""Draw which module of the package imports which, for CONTRIBUTING.md: `make imports`.

An arrow leaves out what follows from others: if a imports b and b imports c, a → c is not drawn. Modules
whose name begins with an underscore, and the checks, which import everything, are left out.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "adv_lib"
PICTURE = ROOT / ".github/imports.svg"
SWEEPS = 20


def module_of(file: Path) -> str:
    """The module of the package, or the package in it, that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The modules of adv_lib that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        inside = len(file.relative_to(PACKAGE).parts) - node.level  # 0: relative to the package itself
        if inside == 0:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
    return found


def graph() -> dict[str, set[str]]:
    """Module → the modules that it imports, also through modules with an underscore."""
    direct: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        direct.setdefault(module_of(file), set()).update(imported(file) - {module_of(file)})

    def shown(name: str) -> set[str]:
        hidden = {other for other in direct[name] if other.startswith("_")}
        return (direct[name] - hidden).union(*map(shown, hidden))

    return {name: shown(name) for name in direct if not name.startswith("_") and name != "checks"}


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same order with the fewest arrows."""

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(edges[name]).union(*map(below, edges[name]))

    return {
        name: {b for b in others if not any(b in below(c) for c in others)}
        for name, others in edges.items()
    }


def text(edges: dict[str, set[str]]) -> str:
    """The arrows in words, as the picture keeps them."""
    return "; ".join(f"{a} → {', '.join(sorted(bs))}" for a, bs in sorted(edges.items()) if bs)


def places(edges: dict[str, set[str]]) -> dict[str, tuple[float, float]]:
    """A place for each module: above all that it imports, and near its neighbours."""

    @cache
    def height(name: str) -> int:
        return 1 + max(map(height, edges[name])) if edges[name] else 0

    rows: dict[int, list[str]] = {}
    for name in sorted(edges):
        rows.setdefault(height(name), []).append(name)
    users = {name: {a for a in edges if name in edges[a]} for name in edges}
    x = {name: i - (len(row) - 1) / 2 for row in rows.values() for i, name in enumerate(row)}
    for _ in range(SWEEPS):  # put each row in the order of its neighbours' middles
        for row in rows.values():
            near = {n: [x[m] for m in edges[n] | users[n]] or [x[n]] for n in row}
            row.sort(key=lambda n: sum(near[n]) / len(near[n]))
            x |= {n: i - (len(row) - 1) / 2 for i, n in enumerate(row)}
    return {name: (x[name], height(name)) for name in edges}


def draw() -> None:
    """Write the picture."""
    edges = reduced(graph())
    at = places(edges)
    plt.rcParams["svg.hashsalt"] = "imports"
    figure, ax = plt.subplots(figsize=(11, 0.95 * (1 + max(y for _, y in at.values()))))
    for a, others in edges.items():
        for b in others:
            ax.annotate(
                "", at[b], at[a],
                arrowprops={"arrowstyle": "->", "color": "#777777", "shrinkA": 11, "shrinkB": 11},
            )  # fmt: skip
    for name, (x, y) in at.items():
        box = {"boxstyle": "round", "facecolor": "#eaf2f8", "edgecolor": "#1b4965"}
        ax.text(x, y, name, ha="center", va="center", fontsize=10, bbox=box)
    xs = [x for x, _ in at.values()]
    ax.set(xlim=(min(xs) - 0.6, max(xs) + 0.6), ylim=(-0.5, max(y for _, y in at.values()) + 0.5))
    ax.axis("off")
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Description": text(edges), "Date": None})
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    draw()
