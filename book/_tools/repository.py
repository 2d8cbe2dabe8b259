"""The book's public address, in one place: `repository.url` and `branch` in _config.yml.

    repository.py --check                         lists every place that disagrees, exit code 1
    repository.py https://github.com/you/fork     rewrites them all (make fork URL=…)

An address is the book's own when the configuration, the metadata or the install cell of a chapter
uses it; links to other people's repositories are left alone. Standard library only, so that a fork
needs no environment. Notebooks are rewritten as text, which keeps their formatting.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = "_config.yml"
METADATA = {"pyproject.toml", "CITATION.cff"}
INSTALL = "git+https://github.com/"
NAME = r"[\w-]+(?:\.(?!git\b)[\w-]+)*"
ADDRESS = re.compile(
    rf"(?P<use>git\+https://github\.com/|colab\.research\.google\.com/github/|\bgithub\.com/)"
    rf"(?P<owner>[\w-]+)/(?P<repo>{NAME})(?:(?P<blob>/blob/)(?P<branch>[\w.-]+))?"
    rf"|\b(?P<host>[\w-]+)\.github\.io/(?P<site>{NAME})"
)


def slug(match: re.Match) -> str:
    """owner/repo of one address, in lower case, as GitHub compares them."""
    return f"{match['owner'] or match['host']}/{match['repo'] or match['site']}".lower()


def text_files(root: Path) -> dict[str, str]:
    """Every text file that git tracks or would track under `root`: {path: text}."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    texts = {}
    for name in filter(None, listed.split("\0")):
        try:
            texts[name] = (root / name).read_bytes().decode()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture, or a file deleted but not yet committed
    return texts


def declared(texts: dict[str, str]) -> tuple[str, str]:
    """("https://github.com/owner/repo", branch) as _config.yml states them."""
    url = re.search(rf"^ +url *: *(https://github\.com/[\w-]+/{NAME})", texts[CONFIG], re.M)
    branch = re.search(r"^ +branch *: *([\w.-]+)", texts[CONFIG], re.M)
    return url[1], branch[1]


def rewritten(texts: dict[str, str], url: str, branch: str) -> dict[str, str]:
    """The same files with every address of the book turned into `url` and `branch`."""
    owner, repo = url.split("/")[-2:]
    ours = {slug(ADDRESS.search(declared(texts)[0]))} | {
        slug(m)
        for name, text in texts.items()
        for m in ADDRESS.finditer(text)
        if name in METADATA or (name.startswith("chapters/") and m["use"] == INSTALL)
    }

    def address(m: re.Match) -> str:
        if slug(m) not in ours:
            return m[0]
        if m["host"]:
            return f"{owner.lower()}.github.io/{repo}"
        return f"{m['use']}{owner}/{repo}" + (f"{m['blob']}{branch}" if m["blob"] else "")

    return {name: ADDRESS.sub(address, text) for name, text in texts.items()}


def disagreements(root: Path) -> list[str]:
    """`path:line: address` for every address of the book that _config.yml contradicts."""
    texts = text_files(root)
    wanted = rewritten(texts, *declared(texts))
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, (line, new) in enumerate(
            zip(text.splitlines(), wanted[name].splitlines(), strict=True), start=1
        )
        if line != new
    ]


def fork(root: Path, url: str) -> list[str]:
    """Make `url` the book's address everywhere; returns the files that changed."""
    texts = text_files(root)
    new = rewritten(texts, url, declared(texts)[1])
    changed = [name for name in texts if new[name] != texts[name]]
    for name in changed:
        (root / name).write_bytes(new[name].encode())
    return changed


def main(argument: str) -> int:
    if argument == "--check":
        places = disagreements(ROOT)
        print("\n".join(places) or f"Every address of the book agrees with {CONFIG}.")
        return int(bool(places))
    url = argument.rstrip("/").removesuffix(".git")
    if not re.fullmatch(rf"https://github\.com/[\w-]+/{NAME}", url):
        print(f"Not the address of a GitHub repository: {argument}", file=sys.stderr)
        return 2
    changed = fork(ROOT, url)
    print("\n".join(changed) or "Nothing to change.")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
