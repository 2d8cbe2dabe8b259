"""The built site, served locally, in a real browser."""

import os
import re
import shutil
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "_build"
SITE = BUILD / "html"
SLIDES = SITE / "slides"
DESKTOP = {"width": 1280, "height": 900}
FRAME = {"width": 1280, "height": 720}
HOUR = 3_600_000  # milliseconds: no wait ends by the clock
QUIET = [  # start as root in a container, and look nothing up
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def below(folder: Path, pattern: str) -> list[str]:
    """The HTML files of a build below `folder`, without those that Sphinx keeps for itself."""
    found = (path.relative_to(folder) for path in folder.glob(pattern))
    return sorted(str(path) for path in found if not path.parts[0].startswith("_"))


PAGES = [page for page in below(SITE, "**/*.html") if not page.startswith("slides/")]
DECKS = below(SLIDES, "[0-9]*.html")


def missing(what: str):
    """A visible skip at home, a failure in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def browser():
    names = "chromium", "chromium-browser", "google-chrome"
    command = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        if not command and not Path(own).exists():
            missing("No Chromium: apt-get install chromium, or playwright install chromium.")
        browser = playwright.chromium.launch(executable_path=command or own, args=QUIET, timeout=HOUR)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address():
    """The address of a local server for the built site."""
    if not (SITE / "index.html").exists():
        missing("No built site in _build/html: make book.")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing: failed requests are the browser's to report."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@dataclass
class Visit:
    """A page in the browser and what happened while it loaded and was used."""

    page: Page
    name: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complain(m.text))
        self.page.on("pageerror", lambda error: self.complain(str(error)))
        self.page.on("requestfailed", self.failed)
        self.page.on("response", lambda r: r.status >= 400 and self.complain(f"{r.status} {r.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def complain(self, text: str):
        self.complaints.append(text)

    def failed(self, request):
        """What the browser itself gave up is no failure, such as a drawing for another width."""
        if request.failure != "net::ERR_ABORTED":
            self.complain(f"{request.failure}: {request.url[:200]}")

    def open(self, url: str):
        """Load `url` and wait until its faces are there."""
        self.page.goto(url, wait_until="networkidle")
        self.page.wait_for_load_state("load")
        self.page.evaluate("document.fonts.ready.then(() => true)")
        return self

    def hosts(self) -> set[str]:
        """The hosts that were asked for something."""
        return {urlsplit(url).hostname for url in self.requests if url.startswith("http")}

    def screenshot(self, label: str, **options):
        """Keep a picture in _build/screenshots when SCREENSHOTS is set."""
        if os.environ.get("SCREENSHOTS"):
            self.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            name = re.sub(r"\W+", "-", self.name.removesuffix(".html"))
            self.page.screenshot(path=BUILD / "screenshots" / f"{name}-{label}.png", **options)


@pytest.fixture(scope="session", params=PAGES or ["no page"])
def loaded(request, browser, address):
    """One page of the book, loaded once for all tests of it."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(HOUR)
    visit = Visit(context.new_page(), request.param)
    yield visit.open(f"{address}/{request.param}")
    context.close()


@pytest.fixture
def visit(loaded):
    """The page in a desktop window, as it was when it had loaded."""
    yield loaded
    loaded.page.emulate_media(media="screen", color_scheme="light")
    loaded.page.set_viewport_size(DESKTOP)


@pytest.fixture(scope="session", params=DECKS or ["no deck"])
def deck(request, browser):
    """One deck in a 16:9 window, from its file, with the network off."""
    path = SLIDES / request.param
    if not path.exists():
        missing("No deck in _build/html/slides: make book.")
    context = browser.new_context(viewport=FRAME, offline=True)
    context.set_default_timeout(HOUR)
    visit = Visit(context.new_page(), f"slides/{request.param}").open(path.as_uri())
    visit.page.wait_for_function("window.Reveal?.isReady()")
    yield visit
    context.close()
