"""Write book/_static/fonts: the faces of the page, from the packages that npm has of them.

    npm pack @fontsource-variable/source-serif-4@5.3.1 @fontsource-variable/source-sans-3@5.3.1 \\
             @fontsource-variable/source-code-pro@5.3.1 @fontsource/stix-two-math@5.3.0
    for f in *.tgz; do mkdir ${f%-5*}; tar xzf $f -C ${f%-5*} --strip-components=1; done
    uv run --with fonttools --with brotli fonts.py FOLDER

The text faces are copied as they come, a file for each script. The mathematical face is cut down to the
signs that mathematics uses, with all sizes of those that grow, from 403 kB to 74 kB, and leaves the
indices of y and of ‖·‖ where those of x are. book/_static/fonts.css names the signs that it has, and a
test asks that no formula needs another.
"""

import shutil
import sys
from pathlib import Path

from fontTools import subset

FONTS = Path(__file__).parents[1] / "_static/fonts"
COPIED = {
    "source-serif-4": [
        "latin-wght-normal",
        "latin-wght-italic",
        "greek-wght-normal",
        "greek-wght-italic",
    ],
    "source-sans-3": ["latin-wght-normal", "greek-wght-normal"],
    "source-code-pro": ["latin-wght-normal", "greek-wght-normal"],
}
SIGNS = """
    20-7E A0 A7 AC AF B0 B1 B7 D7 F7 131 237 2C6 2C7 2D8-2DA 2DC 300-308 30C 331 332
    391-3C9 3D1 3D5 3D6 3F0 3F1 3F4 3F5
    2010 2013 2014 2016 2018 2019 201C 201D 2020 2022 2026 2032-2035 203E 2040 2044 2061-2064 2070-209C
    20D6 20D7
    2102 210A-2113 2115 2118-211D 2124 212C 212F-2131 2133-2135
    2190-2199 219D 21A6 21A9 21AA 21BC 21C0 21CC 21D0-21D5
    2200-220C 220F-2213 2215-221A 221D 221E 2223-222D 2234 2235 223C 2243 2245 2248 224D 2254 225C 225D
    225F-226B
    226E-2271 227A-227D 2282-2287 228A 228B 2293-2299 22A2-22A5 22A8 22C0-22C6 22EE 22EF 22F1
    2308-230B 23B4 23B5 23DC-23DF 25A0 25A1 25B2 25B3 25B9 25BD 25C7 25CB 25CF 25FB 25FC 2605 2713 2717
    27E6-27E9 27F5-27FA 27FC 2A00-2A02 2A06 2A7D 2A7E 2A85 2A86 2AAF 2AB0
    1D400-1D49B 1D49C-1D4CF 1D504-1D51C 1D538-1D551 1D6A4 1D6A5 1D6A8-1D755 1D7CE-1D7DA
"""
SLACK = 250  # thousandths of an em: a base is so deep, or high, before its indices move


def code_points(ranges: str) -> list[int]:
    """The numbers in a list of hexadecimal numbers and ranges."""
    ends = [[int(end, 16) for end in part.split("-")] for part in ranges.split()]
    return [number for first, *last in ends for number in range(first, (last or [first])[0] + 1)]


def cut(source: Path, target: Path) -> list[int]:
    """Keep SIGNS of a face, and what grows from them; return those that it has."""
    options = subset.Options(flavor="woff2", layout_features=["*"], hinting=False)
    options.name_IDs += [13, 14]  # the licence
    face = subset.load_font(source, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=code_points(SIGNS))
    cutter.subset(face)
    constants = face["MATH"].table.MathConstants
    constants.SubscriptBaselineDropMin.Value = -SLACK
    constants.SuperscriptBaselineDropMax.Value = 250 + SLACK
    subset.save_font(face, target, options)
    return sorted(face.getBestCmap())


def unicode_range(numbers: list[int]) -> str:
    """The numbers as CSS writes them."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"U+{first:X}" + (f"-{last:X}" if last > first else "") for first, last in runs)


if __name__ == "__main__":
    packages = Path(sys.argv[1])
    for name, parts in COPIED.items():
        package = packages / f"fontsource-variable-{name}"
        for part in parts:
            shutil.copy(package / f"files/{name}-{part}.woff2", FONTS)
        shutil.copy(package / "LICENSE", FONTS / f"LICENSE-{name}")
    package = packages / "fontsource-stix-two-math"
    shutil.copy(package / "LICENSE", FONTS / "LICENSE-stix-two-math")
    kept = cut(package / "files/stix-two-math-latin-400-normal.woff2", FONTS / "stix-two-math.woff2")
    print(f"unicode-range: {unicode_range(kept)};")
