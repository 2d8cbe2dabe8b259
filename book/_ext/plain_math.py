"""Formulas in one line of Unicode, for places that cannot set them: what search finds and shows."""

import re

# fmt: off
SIGNS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "varepsilon": "ε", "epsilon": "ε", "eta": "η",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ",
    "sigma": "σ", "varphi": "φ", "phi": "φ", "Delta": "Δ", "Gamma": "Γ", "Sigma": "Σ", "ell": "ℓ",
    "infty": "∞", "nabla": "∇", "partial": "∂", "le": "≤", "ge": "≥", "ne": "≠", "neq": "≠", "ll": "≪",
    "approx": "≈", "sim": "∼", "in": "∈", "subseteq": "⊆", "to": "→", "mapsto": "↦", "leftarrow": "←",
    "downarrow": "↓", "iff": "⇔", "Rightarrow": "⇒", "langle": "⟨", "rangle": "⟩", "lVert": "‖",
    "rVert": "‖", "Vert": "‖", "lvert": "|", "rvert": "|", "cdot": "·", "times": "×", "pm": "±",
    "mp": "∓", "odot": "⊙", "sum": "∑", "int": "∫", "sqrt": "√", "dots": "…", "top": "ᵀ",
    "blacksquare": "", "bmod": "mod",
}
# fmt: on
SPACING = r"\\(?:[,;:! ]|q?quad\b)|[&~]"
DRESS = (
    r"\\(?:[bB]igg?[lr]?|left|right|text|mathrm|mathbf|mathbb|mathcal|operatorname|textstyle|displaystyle|"
    r"underbrace|(?:begin|end)\{\w+\*?\})(?![a-zA-Z])"
)
ACCENTS = {"hat": "\u0302", "bar": "\u0304"}
LOW = str.maketrans("0123456789+-aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
HIGH = str.maketrans("0123456789+-kniT", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵏⁿⁱᵀ")


def plain(tex: str) -> str:
    r"""A formula in one line of Unicode: \max_{\delta \in \Delta} \ell becomes max_(δ ∈ Δ) ℓ."""
    tex = re.sub(DRESS, "", re.sub(SPACING, " ", tex.replace(r"\\", "; ")))
    tex = re.sub(r"\\([a-zA-Z]+|[|{}])", sign, tex)
    tex = re.sub(r"([\u0302\u0304])\s*\{?(\w)\}?", r"\2\1", tex)
    group = r"(?:\{([^{}]*)\}|([^\s{}]))"
    for _ in range(4):  # groups inside groups
        tex = re.sub(rf"([_^])\s*{group}", lambda m: index(m[1], (m[2] or m[3] or "").strip()), tex)
        tex = re.sub(rf"⁄\s*{group}\s*{group}", fraction, tex)
    line = " ".join(re.sub(r"[\ue000\ue001]", brace, re.sub(r"[{}]", "", tex)).split())
    return re.sub(r"(?<=[⟨(]) | (?=[_^;,.⟩)])", "", line)


def sign(command: re.Match) -> str:
    """The character of a command, or its name: max, log, sup."""
    name = command[1]
    if name in "{}|":
        return {"{": "\ue000", "}": "\ue001", "|": "‖"}[name]
    if name in ("frac", "tfrac", "dfrac"):
        return "⁄"
    return ACCENTS.get(name) or SIGNS.get(name, f" {name} ")


def brace(mark: re.Match) -> str:
    """A brace that is meant, not one that groups."""
    return "{" if mark[0] == "\ue000" else "}"


def fraction(parts: re.Match) -> str:
    """Two groups as a quotient."""
    over, under = (parts[1] or parts[2]), (parts[3] or parts[4])
    return "/".join(
        f"({part})" if re.search(r"\s", part.strip()) else part.strip() for part in (over, under)
    )


def index(mark: str, small: str) -> str:
    """A small character where Unicode has it: ℓ∞, x₂; else the mark itself: max_(δ ∈ Δ)."""
    table = LOW if mark == "_" else HIGH
    if small in ("∞", "*", "ᵀ", "′") or all(ord(letter) in table for letter in small):
        return small.translate(table)
    return mark + (f"({small})" if " " in small else small)
