"""docs/doctor.md: every check, and every trouble of each, as the code has them."""

import re
from pathlib import Path

import pytest

from voldriverd import sockets
from voldriverd.cli import daemon
from voldriverd.doctor import CHECKS, host, tools
from voldriverd.doctor import sockets as doctors_sockets
from voldriverd.doctor.finding import Check, Trouble

TEXT = (Path(__file__).parent.parent / "docs" / "doctor.md").read_text()


def section(check: Check) -> str:
    """Return how a check stands in the document; names that are filled in stand in capitals."""
    head = [f"### {check.name}", "", f"{check.what[0].upper()}{check.what[1:]}.", ""]
    table = ["| Level | When | What it means | What to do |", "|---|---|---|---|", *map(row, check.troubles)]
    return "\n".join([*head, *table, ""])


def row(trouble: Trouble) -> str:
    cells = (trouble.level.value, trouble.when, trouble.meaning, trouble.remedy)
    return f"| {' | '.join(map(filled, cells))} |"


def filled(text: str) -> str:
    return re.sub(r"{(\w+)}", lambda found: found[1].upper(), text)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_stands_in_the_document_as_the_code_has_it(check: Check) -> None:
    assert section(check) in TEXT


def test_no_check_stands_there_that_there_is_not() -> None:
    assert re.findall(r"^### (\S+)$", TEXT, re.MULTILINE) == [check.name for check in CHECKS]


def test_no_check_has_the_name_of_another_and_no_cell_breaks_its_table() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    texts = [text for check in CHECKS for each in check.troubles for text in (each.when, each.meaning, each.remedy)]
    assert [text for text in texts if "|" in text or not text] == []


def test_what_stands_in_two_places_is_the_same() -> None:
    unit = (Path(__file__).parent.parent / "systemd" / "voldriverd.service").read_text()
    given = set(" ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)).split())
    assert {name for name, _ in host.CAPABILITIES.values()} == given - {"CAP_NET_BIND_SERVICE"}
    assert doctors_sockets.MODE == sockets._MODE
    assert tools.SBIN == daemon._SBIN


def test_every_act_of_fix_stands_in_the_document() -> None:
    kinds = {"socket", "loop device", "mount", "link", "mode", "group"}
    fixes = TEXT.partition("## --fix")[2].partition("\n## ")[0]
    assert [kind for kind in kinds if kind not in fixes] == []
