"""Lists that nobody types: of chapters, exercises, lectures and sessions, read from the chapters' cells.

Four directives, each for all chapters of the table of contents: `chapter-cards`, `exercise-list`,
`lecture-plan` and `course-plan`. Their pages are rebuilt when a chapter changes. Minutes come from the
exercises' metadata and from the "Timing: 8 minutes." of the speaker's notes, which covers the slides
since the one before. Those of ★ sections that nothing leans on are counted apart.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import reading
import yaml
from chapter_cells import COMMENT_CELL, FORM_TITLE, KINDS, TIMING, references, slide_type, source, tags
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

TITLE = re.compile(r"^#+ (.+)$|\A\*\*(.+?)\.?\*\*", re.MULTILINE)  # a heading, or **Theorem (…).**

QUESTION = re.compile(r"^\*\*(.+)\*\*$", re.MULTILINE)
BADGES = re.compile(
    r"\[Open in Colab\]\((?P<colab>\S+)\).* (?P<read>\d+) min to read,.*needs: (?P<needs>.+)"
)
CARDS = "book/_static/cards"


@dataclass(frozen=True)
class Stretch:
    """Slides that share one timing, and what the notes say to them."""

    minutes: int
    slides: list[str]
    notes: str
    star: str  # the ★ line of their section, or ""

    @property
    def left_out(self) -> bool:
        """Whether a lecture may leave them out: nothing leans on them."""
        return self.star.startswith(reading.SKIPPED)


@dataclass(frozen=True)
class Chapter:
    """A notebook of the table of contents; `NN_name` gives its number."""

    docname: str
    cells: list[dict]

    @property
    def name(self) -> str:
        return Path(self.docname).name

    @property
    def number(self) -> int:
        return int(self.name[:2])

    @property
    def title(self) -> str:
        """The chapter's heading."""
        return TITLE.search(source(self.cells[0]))[1]

    @property
    def question(self) -> str:
        """The sentence below the heading."""
        return QUESTION.search(source(self.cells[0]))[1]

    @property
    def badges(self) -> re.Match:
        """Where the chapter opens in Colab, the minutes that its text takes, and what it needs."""
        (badges,) = (source(cell) for cell in self.cells if "badges" in cell["metadata"])
        return BADGES.search(badges)

    @property
    def exercises(self) -> list[dict]:
        """The metadata of each exercise: label, title, minutes, kind, difficulty, importance."""
        return [c["metadata"]["exercise"] for c in self.cells if "exercise" in c["metadata"]]

    @property
    def headed(self) -> list[tuple[str, dict]]:
        """Every cell with the last heading or theorem up to it."""
        found, heading = [], ""
        for cell in self.cells:
            if cell["cell_type"] == "markdown" and (title := TITLE.search(source(cell))):
                heading = title[1] or title[2]
            found.append((heading, cell))
        return found

    @property
    def live(self) -> list[tuple[str, str]]:
        """(heading, code) of the cells that are run in front of the audience."""
        return [(h, FORM_TITLE.sub("", source(c))) for h, c in self.headed if "live-demo" in tags(c)]

    @property
    def lecture(self) -> list[Stretch]:
        """The deck in order, cut after every note that has a timing."""
        stars = {id(cell): star for cell, _, star in reading.stretches(self.cells)}
        found, slides, notes, own = [], [], [], set()
        for heading, cell in self.headed:
            kind = slide_type(cell)
            if kind in ("slide", "subslide"):
                slides.append(heading)
                own.add(stars.get(id(cell), ""))
            elif kind == "notes":
                notes.append(" ".join(COMMENT_CELL.fullmatch(source(cell))[2].split()))
                if timing := TIMING.search(notes[-1]):
                    notes[-1] = TIMING.sub("", notes[-1]).strip()
                    if len(own) > 1:
                        raise ValueError(f"{self.docname}: one timing, with and without a ★: {slides}")
                    said = references("<br>".join(notes))
                    found.append(Stretch(int(timing[1]), slides, said, "".join(own)))
                    slides, notes, own = [], [], set()
        if slides or notes:
            raise ValueError(f"{self.docname}: no note with a timing follows the slides {slides}")
        return found

    @property
    def lecture_minutes(self) -> int:
        return lasting(self.lecture)

    def sitting(self, begin: str | None, end: str | None) -> tuple[int, str]:
        """The minutes from one slide until another, by their headings, and that in words."""
        starts = [part.slides[0] if part.slides else "" for part in self.lecture]
        if unknown := {begin, end} - {None, *starts}:
            raise ValueError(f"{self.docname}: no stretch of slides begins with {unknown}")
        part = self.lecture[begin and starts.index(begin) : end and starts.index(end)]
        words = f" from *{begin}* on" * bool(begin) + f" up to *{end}*" * bool(end)
        return lasting(part), words

    @property
    def exercise_minutes(self) -> int:
        return total(self.exercises)


def lasting(lecture: list[Stretch], left_out: bool = False) -> int:
    """The minutes of a lecture, or of what it leaves out."""
    return sum(stretch.minutes for stretch in lecture if stretch.left_out == left_out)


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def folded(summary: str, text: str) -> str:
    """A block that opens by a click."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>\n\n"


class Overview(SphinxDirective):
    """What the directives share: the chapters, and sections for them."""

    def chapters(self) -> list[Chapter]:
        """Every notebook of the table of contents, in its order; a change in one rebuilds the page."""
        self.env.note_dependency(self.config.external_toc_path)
        found = []
        for docname in self.env.external_site_map:
            path = Path(self.env.doc2path(docname))
            if path.suffix == ".ipynb":
                self.env.note_dependency(str(path))
                found.append(Chapter(docname, json.loads(path.read_text(encoding="utf-8"))["cells"]))
        return found

    def section(self, chapter: Chapter, text: str) -> nodes.section:
        """A section with the chapter's title."""
        head = nodes.title("", chapter.title)
        return nodes.section("", head, *self.parse_text_to_nodes(text), ids=[f"in-{chapter.name}"])


class ChapterCards(Overview):
    """A card for every chapter: its picture, its question, and the minutes that its text takes.

    The picture is book/_static/cards/NN.svg, if there is one, and its <title> says what it shows.
    """

    def run(self) -> list[nodes.Node]:
        cards = [nodes.container("", *self.card(c), classes=["adv-card"]) for c in self.chapters()]
        return [nodes.container("", *cards, classes=["adv-cards"])]

    def card(self, chapter: Chapter) -> list[nodes.Node]:
        """One chapter."""
        drawn = Path(self.env.srcdir, CARDS, f"{chapter.name[:2]}.svg")
        picture = []
        if drawn.exists():
            shows = re.search("<title>(.*?)</title>", drawn.read_text("utf-8"))[1]
            picture = [nodes.image(uri=f"/{CARDS}/{drawn.name}", alt=shows)]
        title, question, time = self.parse_text_to_nodes(
            f"{{doc}}`{chapter.title} </{chapter.docname}>`\n\n"
            f"{chapter.question}\n\n{chapter.badges['read']} minutes"
        )
        title.insert(0, nodes.inline("", f"{chapter.number} ", classes=["adv-number"]))
        title["classes"].append("adv-card-title")
        time["classes"].append("adv-card-time")
        return [*picture, title, question, time]


class ExerciseList(Overview):
    """Every exercise with its number, minutes and kind, chapter by chapter, and the totals."""

    def run(self) -> list[nodes.Node]:
        chapters = self.chapters()
        rows = [self.totals(f"{{doc}}`/{c.docname}`", c.exercises) for c in chapters]
        rows.append(self.totals("**All**", [each for c in chapters for each in c.exercises]))
        totals = table(["Chapter", *KINDS.values(), "Exercises", "Minutes", "Essential"], rows)
        return [
            *self.parse_text_to_nodes(totals),
            *(self.section(c, self.listing(c.exercises)) for c in chapters),
        ]

    def totals(self, name: str, exercises: list[dict]) -> list:
        """One row: how many of each kind and in all, their minutes, those of the essential ones."""
        kinds = Counter(each["kind"] for each in exercises)
        return [
            name,
            *(kinds[kind] for kind in KINDS),
            len(exercises),
            total(exercises),
            total([each for each in exercises if each["importance"] == "essential"]),
        ]

    def listing(self, exercises: list[dict]) -> str:
        """The table of one chapter."""
        shown = ("title", "minutes", "kind", "difficulty", "importance")
        rows = [
            [f"{{numref}}`{e['label']}`", *((e | {"kind": KINDS[e["kind"]]})[key] for key in shown)]
            for e in exercises
        ]
        rows.append(["**All**", "", total(exercises), "", "", ""])
        return table(["Exercise", "Title", "Minutes", "Kind", "Difficulty", "Importance"], rows)


class LecturePlan(Overview):
    """Each chapter's deck with its minutes, the cells to run live, and advice from the body.

    A line `=== 01_linear_models` in the body begins the advice for that chapter.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        _, *parts = re.split(r"^=== (\S+)$", "\n".join(self.content), flags=re.MULTILINE)
        advice = dict(zip(parts[::2], parts[1::2], strict=True))
        chapters = self.chapters()
        if unknown := advice.keys() - {chapter.name for chapter in chapters}:
            raise self.error(f"advice for chapters that are not in the table of contents: {unknown}")
        return [self.section(c, self.plan(c) + advice.get(c.name, "")) for c in chapters]

    def plan(self, chapter: Chapter) -> str:
        """Links and totals, the deck as a table, and the live cells, folded."""
        home, lecture = self.config.html_baseurl, chapter.lecture
        slides = sum(len(stretch.slides) for stretch in lecture)
        rows = [
            ["★ " * p.left_out + str(p.minutes), " · ".join(p.slides), p.notes.replace("|", "\\|")]
            for p in lecture
        ]
        extra = f" and ★ {more}" if (more := lasting(lecture, left_out=True)) else ""
        rows.append([f"**{chapter.lecture_minutes}**{extra}", f"**{slides} slides**", ""])
        deck = folded("The deck, minute by minute", table(["Minutes", "Slides", "Say and ask"], rows))
        live = "".join(
            folded("Run this live", f"{where}:\n\n```python\n{code}\n```")
            for where, code in chapter.live
        )
        return (
            f"[Slides]({home}slides/{chapter.name}.html) ({chapter.lecture_minutes} minutes{extra}) · "
            f"{{doc}}`notebook </{chapter.docname}>` · "
            f"[student copy]({home}student/{chapter.name}.ipynb) · "
            f"{len(chapter.exercises)} exercises ({chapter.exercise_minutes} minutes)\n\n"
            f"{deck}{live}"
        )


class CoursePlan(Overview):
    """A timetable: the body lists sessions in YAML, the chapters say how long they take.

    session: its name; decks: numbers of chapters; from, until: a slide's heading, where the session
    begins or ends within its decks; class, home: labels of exercises, or numbers of chapters for all of
    theirs; minutes: for what is neither, such as lunch. A chapter that the book does not have is left
    out. With `:start: 9:00` every session begins when the one before ends.
    """

    has_content = True
    option_spec = {"start": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        chapters = self.chapters()
        hours, _, past = self.options.get("start", "0:00").partition(":")
        clock, rows, used, at_home = 60 * int(hours) + int(past), [], set(), 0
        for session in yaml.safe_load("\n".join(self.content)):
            decks = [
                (c, *c.sitting(session.get("from"), session.get("until")))
                for c in chapters
                if c.number in session.get("decks", [])
            ]
            now, later = (chosen(chapters, session.get(key, [])) for key in ("class", "home"))
            taken = sum(minutes for _, minutes, _ in decks) + total(now) + session.get("minutes", 0)
            name = f"{clock // 60}:{clock % 60:02} " * ("start" in self.options) + session["session"]
            rows.append([name, "; ".join([*(self.deck(*d) for d in decks), *map(link, now)]), taken])
            rows[-1] += ["; ".join(map(link, later)), total(later) or ""]
            clock, at_home = clock + taken, at_home + total(later)
            used |= {c.docname for c, *_ in decks} | {e["label"] for e in [*now, *later]}
        rows.append(["**All**", "", sum(row[2] for row in rows), "", at_home or ""])
        head = ["Session", "In class (minutes)", "Minutes", "At home (minutes)", "Minutes"]
        width = len(head) if at_home else 3
        left = [self.deck(c, c.lecture_minutes) for c in chapters if c.docname not in used]
        unset = [e for c in chapters for e in c.exercises if e["label"] not in used]
        left += [f"exercises of {total(unset)} minutes"] if unset else []
        rest = f"\n\nNot in this plan: {'; '.join(left)}." if left else ""
        text = table(head[:width], [row[:width] for row in rows]) + rest
        return self.parse_text_to_nodes(text)

    def deck(self, chapter: Chapter, minutes: int, part: str = "") -> str:
        """A chapter's slides, or a part of them, linked, with their minutes."""
        words, home = chapter.title.partition(":")[0], self.config.html_baseurl
        return f"slides of [{words}]({home}slides/{chapter.name}.html){part} ({minutes})"


def chosen(chapters: list[Chapter], wanted: list) -> list[dict]:
    """The exercises with these labels, and all those of chapters given by number."""
    every = [(c.number, e) for c in chapters for e in c.exercises]
    labels = {each["label"] for _, each in every}
    if missing := [w for w in wanted if isinstance(w, str) and w not in labels]:
        raise ValueError(f"the course plan asks for exercises that do not exist: {missing}")
    return [each for number, each in every if number in wanted or each["label"] in wanted]


def total(exercises: list[dict]) -> int:
    """The minutes of some exercises."""
    return sum(each["minutes"] for each in exercises)


def link(exercise: dict) -> str:
    """An exercise's title, linked, with its minutes."""
    return f"{{ref}}`{exercise['title']} <{exercise['label']}>` ({exercise['minutes']})"


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_directive("chapter-cards", ChapterCards)
    app.add_directive("exercise-list", ExerciseList)
    app.add_directive("lecture-plan", LecturePlan)
    app.add_directive("course-plan", CoursePlan)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
