"""docs/security.md: each test that it names is there."""

import re
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
TEXT: Final = (TESTS.parent / "docs" / "security.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    there = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = set(re.findall(r"`(test_\w+)`", TEXT)) - {path.stem for path in TESTS.rglob("test_*.py")}
    assert len(named) > 30
    assert named - there == set()


def test_every_line_of_what_cannot_be_done_names_a_test() -> None:
    tables = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| Who")]
    claims = tables[tables.index("| It cannot | Test |") :]
    assert [line for line in claims if "Test |" not in line and "`test_" not in line] == []
