"""What the tests that passed were about, counted at the end of a run; shared by tests/ and chapters/."""

from collections import defaultdict


def pytest_terminal_summary(terminalreporter):
    """Say what the tests that passed were about: each theorem, exercise, page, slider, … counts once."""
    seen = defaultdict(set)
    for report in terminalreporter.stats.get("passed", []):
        for what, which in report.user_properties:
            seen[what].add(which)
    for what, which in sorted(seen.items()):
        terminalreporter.write_line(f"evidence: {len(which)} {what}")
