"""The documents of the checkout, and the commands in them, run as they stand there.

Every fenced block of `sh`, `console` or `python` is run by a test, or a comment before it says why not:

    <!-- not run: REASON -->
    <!-- run by: test_NAME -->      where that is not the test of the page, in RUN_BY

In `console` each line after `$ ` is a command (`> ` goes on with it), and what follows is what it prints. There, `…`
stands for anything in its line, or for any lines if it is alone; times, and how wide columns are, do not matter. No
output shown: it may print anything. A command whose comment ends in `# fails` must fail, every other one succeed.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
RUN: Final = frozenset({"sh", "console", "python"})
"""What a test has to run."""
RUN_BY: Final = {
    "README.md": "test_the_small_examples_are_right",
    "docs/api.md": "test_the_examples_of_the_api_answer_as_they_say",
    "docs/backups.md": "test_the_commands_do_what_they_say",
    "docs/concepts.md": "test_the_small_examples_are_right",
    "docs/docker.md": "test_docker_does_what_the_page_says",
    "docs/driver-btrfs.md": "test_the_small_examples_are_right",
    "docs/driver-directory.md": "test_the_small_examples_are_right",
    "docs/driver-loop.md": "test_the_small_examples_are_right",
    "docs/operations.md": "test_a_bad_day_ends_as_the_page_says",
    "docs/options.md": "test_the_small_examples_are_right",
    "docs/restore-by-hand.md": "test_each_recipe_is_in_a_test",
    "docs/tutorial.md": "test_the_tutorial_to_the_letter",
}
"""Which test runs the blocks of a page that have no comment."""
BASH_ENDS: Final = "\x1e"

_FENCE: Final = re.compile(r"(?P<fence>```+)(?P<language>\w*)\s*")
_NOTE: Final = re.compile(r"<!-- (not run|run by): (.+?) -->\s*")
_HEADING: Final = re.compile(r"#{1,6} (?P<title>.+)")
_TIMES: Final = re.compile(
    r"\d{8}T\d{6}Z|\d{4}-\d\d-\d\d(?:T| )\d\d:\d\d(?::\d\d)?(?:[.\d]*)(?:Z| UTC)?|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command, or a block of them, with what it prints."""

    where: str
    """Page and line."""
    command: str
    output: tuple[str, ...] | None = None
    """None: nothing is said of it."""
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    section: str
    """The heading above it."""
    not_run: str | None = None
    """Why it is not run; None: it is."""
    run_by: str | None = None
    """The test that runs it, if it is not the one of the page."""

    @property
    def where(self) -> str:
        """Return page and line, for who reads a failure."""
        return f"{self.page}:{self.line}"


class Page:
    """One document."""

    def __init__(self, name: str) -> None:
        """Take a path below the checkout."""
        self.name = name
        self.path = CHECKOUT / name
        self.text = self.path.read_text()
        self.blocks = tuple(_blocks(name, self.text))

    def run(self, *languages: str, section: str | None = None) -> list[Block]:
        """Return the blocks that the test of this page has to run, of all sections or of one; there must be some."""
        wanted = languages or ("sh", "console")
        found = [
            block
            for block in self.blocks
            if block.language in wanted and not block.not_run and not block.run_by and section in {None, block.section}
        ]
        assert found, f"{self.name} has no block of {wanted} to run in {section}"
        return found

    def steps(self, section: str | None = None) -> list[Step]:
        """Return the commands that the test of this page has to run."""
        return [step for block in self.run(section=section) for step in steps(block)]

    @property
    def sections(self) -> list[str]:
        """Return the headings that have something to run, in their order."""
        return list(dict.fromkeys(block.section for block in self.run()))


def pages() -> list[Page]:
    """Return every document for people."""
    found = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "CHANGELOG.md"]
    return [Page(str(path.relative_to(CHECKOUT))) for path in [*found, *sorted(CHECKOUT.glob("docs/**/*.md"))]]


def steps(block: Block) -> Iterator[Step]:
    """Yield the commands of a block; one of `sh` is a single one."""
    if block.language == "sh":
        yield Step(block.where, block.text)
        return
    lines = block.text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts[:1] == [0], f"{block.where}: a console begins with a command"
    for start, end in pairwise([*starts, len(lines)]):
        more = next((at for at in range(start + 1, end) if not lines[at].startswith("> ")), end)
        command = "\n".join(line[2:] for line in lines[start:more])
        shown = tuple(lines[more:end]) or None
        yield Step(f"{block.page}:{block.line + start}", command, shown, command.endswith("# fails"))


def script(of: Iterable[Step]) -> str:
    """Return the steps for one bash, which ends the output of each with its status, and itself where one fails."""
    return "\n".join(
        f"{{ {step.command}\n}} 2>&1; status=$?; printf '{BASH_ENDS}%s{BASH_ENDS}' $status; "
        f"[ $status {'!=' if step.is_refused else '='} 0 ] || exit"
        for step in of
    )


def differences(of: list[Step], printed: str) -> list[str]:
    """Return what a script printed or answered otherwise than its page says; empty: it is as written there."""
    parts = printed.split(BASH_ENDS)
    said = list(zip(parts[::2], parts[1::2], strict=False))
    found: list[str] = []
    for step, (output, status) in zip(of, said, strict=False):
        if (status == "0") == step.is_refused:
            return [*found, f"{step.where}: `{step.command}` ended with {status}:\n{output}"]
        if step.output is not None and not _is_so(step.output, output):
            shown = "\n".join(step.output)
            found.append(f"{step.where}: `{step.command}` printed\n{output}\nand the page has\n{shown}")
    if len(said) < len(of):
        found.append(f"{of[len(said)].where}: bash ended here:\n{parts[-1]}")
    return found


def follow(of: list[Step], run: Callable[[str], str]) -> None:
    """Run steps with a function that runs a script of bash and returns what it prints; all must be as written."""
    found = differences(of, run(script(of)))
    assert not found, "\n\n".join(found)


def anchors(text: str) -> set[str]:
    """Return the anchors of a document, as GitHub makes them of its headings."""
    found: dict[str, int] = {}
    for line in _without_blocks(text):
        if heading := _HEADING.fullmatch(line):
            slug = re.sub(r"[^\w\- ]", "", heading["title"].strip().lower()).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {slug for name, count in found.items() for slug in (name, *(f"{name}-{n}" for n in range(1, count + 1)))}


def links(text: str) -> list[str]:
    """Return what a document links to, and the images it shows."""
    return re.findall(r"\]\(([^)\s]+)\)", "\n".join(_without_blocks(text)))


def _without_blocks(text: str) -> Iterator[str]:
    fence = ""
    for line in text.splitlines():
        found = _FENCE.fullmatch(line)
        if found and not fence:
            fence = found["fence"]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence:
            yield line if line.startswith("#") else re.sub(r"`[^`]*`", "", line)


def _blocks(page: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    section, note, at = "", None, 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if heading := _HEADING.fullmatch(line):
            section, note = heading["title"], None
        elif found := _NOTE.fullmatch(line):
            note = found
        elif fence := _FENCE.fullmatch(line):
            end = lines.index(fence["fence"], at)
            kind, words = (note[1], note[2]) if note else (None, None)
            yield Block(
                page=page,
                line=at + 1,
                language=fence["language"],
                text="".join(f"{each}\n" for each in lines[at:end]),
                section=section,
                not_run=words if kind == "not run" else None,
                run_by=words if kind == "run by" else None,
            )
            note, at = None, end + 1
        elif line.strip():
            note = None


def _is_so(expected: tuple[str, ...], output: str) -> bool:
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "…" else f"{_pattern(line)}\\s*\n" for line in expected)
    return re.fullmatch(pattern, output if output.endswith("\n") else f"{output}\n") is not None


def _pattern(line: str) -> str:
    parts = []
    for piece in re.split(f"({_TIMES.pattern}|…|\\s+)", line.rstrip()):
        if piece == "…":
            parts.append(".*")
        elif piece.isspace():
            parts.append(r"\s+")
        else:
            parts.append(f"(?:{_TIMES.pattern})" if _TIMES.fullmatch(piece) else re.escape(piece))
    return "".join(parts)
