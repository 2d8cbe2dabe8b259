"""The whole book as one PDF: the articles of the built site, one after another, printed by Chromium.

    pdf.py                  _build/html → _build/book.pdf  (make pdf)

Links between pages become links inside the PDF, headings its outline. Proofs and hints are open;
solutions are left out, like everything that a reader folds open on the site only when needed.
"""

import re
import shutil
import sys
import tomllib
from html import escape
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
LEFT_OUT = (
    "details.solution, details.hide, .badges, .headerlink, script, picture.only-dark, picture > source"
)
BROWSERS = "chromium", "chromium-browser", "google-chrome"
FLAGS = ["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
STYLE = """
  .title-page { break-after: page; padding-top: 60mm; }
  .title { font-size: 25pt; font-weight: 700; line-height: 1.15; }
  .contents a { color: inherit; text-decoration: none; }
  .contents, article { break-before: page; }
  @page { @bottom-center { content: counter(page); font: 9pt sans-serif; } }
  @page :first { @bottom-center { content: none; } @top-left { content: none; } }
"""


def pages(toc: dict) -> list[str]:
    """The pages of the book in reading order, without suffix; the root is `index` in the site."""
    return [toc["root"]] + [entry["file"] for part in toc["parts"] for entry in part["chapters"]]


def article(site: Path, page: str, inside: dict[str, str], public: str) -> Tag:
    """One page's article, with ids that are unique in the book and links that work in it.

    inside: the address of each page of the book in the site → its id here.  public: the book's address.
    """
    soup = BeautifulSoup((site / f"{page}.html").read_text("utf-8"), "html.parser")
    found = soup.select_one("article.bd-article")
    for element in found.select(LEFT_OUT):
        element.decompose()
    found.extend(answers(found, soup))
    for details in found.select("details"):
        details["open"] = ""
    for element in found.select("[id]"):
        element["id"] = f"{inside[f'{page}.html']}--{element['id']}"
    for image in found.select("img[src]:not([src^='data:'])"):
        image["src"] = "html/" + urljoin(f"{page}.html", image["src"])
        image.attrs.pop("loading", None)
    for link in found.select("a[href]"):
        link["href"] = target(link["href"], page, inside, public)
    found["id"] = inside[f"{page}.html"]
    return found


def answers(found: Tag, soup: BeautifulSoup) -> list[Tag]:
    """The answers to an article's predictions, taken out of it, as the section that ends it."""
    for fold in found.select(".adv-predict details"):
        fold.decompose()
    told = [answer.extract() for answer in found.select(".adv-predict-answer")]
    if not told:
        return []
    section = soup.new_tag("section", attrs={"class": "adv-predict-answers"})
    title, listed = soup.new_tag("h2", string="Answers to the predictions"), soup.new_tag("ol")
    for answer in told:
        item = soup.new_tag("li")
        item.extend(list(answer.contents))
        listed.append(item)
    section.extend([title, listed])
    return [section]


def target(href: str, page: str, inside: dict[str, str], public: str) -> str:
    """Where a link of a page leads in the PDF: to a place in it, or to a public address."""
    if urlsplit(href).scheme:
        return href
    path, _, fragment = urljoin(f"{page}.html", href).partition("#")
    if path in inside:
        return f"#{inside[path]}--{fragment}" if fragment else f"#{inside[path]}"
    return urljoin(public, path)


def document(root: Path) -> str:
    """The book as one HTML page for a file beside the site's folder."""
    site = root / "_build/html"
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    names = pages(yaml.safe_load((root / "_toc.yml").read_text("utf-8")))
    inside = {f"{name}.html": re.sub(r"\W+", "-", name) for name in names}
    articles = [article(site, name, inside, config["html"]["baseurl"]) for name in names]
    head = BeautifulSoup((site / f"{names[0]}.html").read_text("utf-8"), "html.parser").head
    styles = [link["href"] for link in head.select("link[rel=stylesheet]")]
    titles = [(a["id"], heading(a)) for a in articles]
    running = "".join(
        f"#{name} {{ page: {name} }} @page {name} {{ @top-left {{ font: 9pt sans-serif; "
        f'content: "{title}" }} }}\n'
        for name, title in titles
    )
    contents = "".join(f'<p><a href="#{name}">{escape(title)}</a></p>' for name, title in titles)
    sheets = "".join(
        f'<link rel="stylesheet" href="html/{urljoin(names[0] + ".html", href)}">' for href in styles
    )
    faces = (ROOT / "book/_static/fonts.css").read_text("utf-8")  # paper waits for them
    sheets += (
        f"<style>{faces.replace('optional', 'block').replace('fonts/', 'html/_static/fonts/')}</style>"
    )
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head><meta charset="utf-8"><title>{escape(config["title"])}</title>
{sheets}<style>{STYLE}{running}</style></head>
<body><main class="bd-main"><div class="bd-content"><div class="bd-article-container">
<div class="title-page"><p class="title">{escape(config["title"])}</p>
<p>{escape(config["author"])}</p><p>Edition {version}</p>
<p><a href="{config["html"]["baseurl"]}">{config["html"]["baseurl"]}</a></p>
<p>Proofs and hints are printed here. Solutions, checks and moving sliders are on the site and in the
notebooks; a slider is printed as it first stands there. Text: CC BY 4.0. Code: BSD 3-Clause.</p></div>
<div class="contents"><p class="title">Contents</p>{contents}</div>
{"".join(map(str, articles))}
</div></div></main></body></html>"""


def heading(page: Tag) -> str:
    """The page's title as plain text."""
    return " ".join(page.select_one("h1").get_text().replace('"', "″").split())


def render(source: Path, pdf: Path) -> None:
    """Let Chromium print."""
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if not command and not Path(playwright.chromium.executable_path).exists():
            sys.exit("No Chromium: apt-get install chromium, or .venv/bin/playwright install chromium.")
        browser = playwright.chromium.launch(executable_path=command, args=FLAGS, timeout=0)
        page = browser.new_page()
        page.set_default_timeout(0)
        page.goto(source.as_uri())
        page.evaluate("document.fonts.ready.then(() => true)")
        page.pdf(path=pdf, prefer_css_page_size=True, outline=True, tagged=True)
        browser.close()


def main(root: Path) -> None:
    """Write _build/book.pdf."""
    source, pdf = root / "_build/book.html", root / "_build/book.pdf"
    source.write_text(document(root), "utf-8")
    render(source, pdf)
    source.unlink()
    print(f"{pdf.relative_to(root)}: {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(ROOT)
