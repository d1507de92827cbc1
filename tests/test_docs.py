"""What holds for every document: each command is run by a test, links lead somewhere, and lists are complete."""

import re
from pathlib import Path

import pytest

from tests.docs import CHECKOUT, RUN, RUN_BY, Page, anchors, differences, links, pages, script, steps
from voldriverd import config, names, toml

PAGES = pages()
TESTS = {
    name: path.read_text()
    for path in sorted((CHECKOUT / "tests").rglob("*.py"))
    for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
}
"""The text of the module of each test."""


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Page:
    found: Page = request.param
    return found


def test_every_block_is_run_or_says_why_not(page: Page) -> None:
    silent = [block.where for block in page.blocks if block.language in RUN and not (block.not_run or block.run_by)]
    runner = RUN_BY.get(page.name)
    assert runner or not silent, f"mark these as tests/docs.py says: {silent}"
    assert not runner or silent, f"{runner} has nothing to run"
    if runner:
        assert f'"{page.name}"' in TESTS[runner] or "PAGES" in TESTS[runner], f"{runner} does not look at {page.name}"


def test_every_test_that_runs_a_block_is_there(page: Page) -> None:
    assert {block.run_by for block in page.blocks if block.run_by} - TESTS.keys() == set()


def test_every_fence_has_a_language_that_is_known(page: Page) -> None:
    known = RUN | {"toml", "ini", "text", "yaml", "json"}
    assert [block.where for block in page.blocks if block.language not in known] == []


def test_every_link_leads_somewhere(page: Page) -> None:
    for link in links(page.text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page.name} links to {link}"


def test_every_configuration_is_read(page: Page, tmp_path: Path) -> None:
    for block in page.blocks:
        if block.language == "toml" and not block.not_run:
            file = tmp_path / "voldriver.toml"
            file.write_text(block.text)
            config.parse(toml.read(file))


def test_every_page_is_in_the_index() -> None:
    index = Page("docs/README.md")
    there = {path.name for path in (CHECKOUT / "docs").glob("*.md")} - {"README.md"}
    assert there - set(links(index.text)) == set()


def test_each_line_of_a_table_has_all_its_columns(page: Page) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", page.text, re.MULTILINE)
    for table in tables:
        rows = table.splitlines()
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(columns) == 1, f"{page.name}: {rows[0]}"


def test_the_page_of_options_has_every_option() -> None:
    rows = _first_cells(Page("docs/options.md").text)
    assert rows == list(names.OPTIONS)


def test_the_page_of_the_configuration_has_every_key_with_its_default() -> None:
    text = Page("docs/configuration.md").text
    keys = {
        *(f"{key}" for key in config._KEYS if key not in {"embedded", "docker", "api", "pools", "targets"}),
        *("embedded.size", "docker.socket"),
        *(f"api.{key}" for key in config._API_KEYS),
        *(f"pools.NAME.{key}" for key in config._POOL_KEYS),
        *(f"targets.NAME.{key}" for key in config._TARGET_KEYS),
    }
    assert sorted(each for each in _first_cells(text) if not each.startswith(("/", "."))) == sorted(keys)
    shown = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)`", text, re.MULTILINE))
    section = ""
    for line in config.effective(config.Config()).splitlines():
        if line.startswith("["):
            section = f"{line[1:-1]}."
        elif line and not line.startswith("#"):
            key, _, value = line.partition(" = ")
            assert shown[section + key] == value.strip('"'), key


def test_what_the_page_for_contributors_names_is_there() -> None:
    text = Page("CONTRIBUTING.md").text
    named = re.findall(
        r"(?:^|[ `])((?:scripts|tests|voldriverd|drivers|docs)/[a-z_/]+(?:\.\w+)?)(?=[ `])", text, re.MULTILINE
    )
    assert len(named) > 20
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


def test_a_step_that_prints_something_else_is_noticed() -> None:
    page = Page("docs/tutorial.md")
    (step, *_) = [each for block in page.run() for each in steps(block) if each.output == ("web",)]
    assert differences([step], "web\n\x1e0\x1e") == []
    assert len(differences([step], "veb\n\x1e0\x1e")) == 1
    assert len(differences([step], "web\n\x1e1\x1e")) == 1
    assert len(differences([step, step], "web\n\x1e0\x1ebash: died\n")) == 1
    assert script([step]).count("printf") == 1


def _first_cells(text: str) -> list[str]:
    """Return the code at the beginning of each row of the tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
