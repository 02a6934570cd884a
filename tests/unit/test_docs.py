"""What the documents promise is tested, and what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_failure_that_is_listed_has_its_test() -> None:
    page = (ROOT / "docs" / "failures.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "`test_" in line]
    named = set(re.findall(r"`(test_\w+)`", page))
    files = [*ROOT.glob("tests/cluster/test_*.py"), *ROOT.glob("tests/unit/test_*.py")]
    tests = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(rows) > 25
    assert named - tests == set()


def test_every_row_of_a_failure_names_a_test() -> None:
    page = (ROOT / "docs" / "failures.md").read_text().partition("## Ending things")[0]
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and "what fails" not in line
    ]
    assert [row for row in rows if "`test_" not in row] == []
