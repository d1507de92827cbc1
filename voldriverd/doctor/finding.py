"""What a check says: one finding a fact, with what it means and what to do, and what could be done about it at once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    NOTE = "note"
    """Nothing needs to be done: good to know, or it could not be looked at."""
    WARNING = "warning"
    """It will cost something sooner or later."""
    BAD = "bad"
    """Something does not work, or data are at risk."""


RANK: Final = tuple(Level)
"""From what matters least on."""


class Act(StrEnum):
    """What `--fix` can do. None of these touches a tree, or anything that somebody uses."""

    REMOVE_SOCKET = "remove socket"
    CLEAR_LOOP = "clear loop device"
    UNMOUNT = "unmount"
    LINK = "make link"
    UNLINK = "remove link"
    MODE = "set mode"
    GROUP = "set group"


@dataclass(frozen=True, slots=True)
class Fix:
    """One thing that can be done."""

    act: Act
    path: str
    """What it is done to; of a loop device the image."""
    value: str = ""
    """The mode in octal, the group's number, where a link leads, the number of a loop device."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One kind of thing that a check may find; the texts stand in docs/doctor.md too."""

    level: Level
    when: str
    """In which case it is told."""
    meaning: str
    remedy: str
    """What to do. `{names}` are filled in."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact, judged."""

    level: Level
    text: str
    meaning: str = ""
    remedy: str = ""
    """Empty: nothing."""
    fix: Fix | None = None
    """None: `--fix` leaves it alone."""
    check: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at."""

    name: str
    subject: str
    """The group that it is shown in."""
    what: str
    """What is looked at."""
    run: Callable[..., Iterable[Finding]]
    """Gathers the facts from a Scope, and judges them."""
    troubles: tuple[Trouble, ...]
    needs_root: bool = False
    is_remote: bool = False
    """Whether what the API tells is enough for it."""
    needs_known: bool = False
    """Whether there is nothing to look at if neither a daemon nor a database tells."""


def fine(text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, text)


def told(trouble: Trouble, text: str, *, fix: Fix | None = None, **names: object) -> Finding:
    """Return a finding of a trouble; `names` are for its remedy."""
    return Finding(trouble.level, text, trouble.meaning, trouble.remedy.format(**names), fix)


def or_fine(found: Iterable[Finding], text: str) -> Iterator[Finding]:
    """Yield what was found, and if that is nothing, that all is well."""
    has_any = False
    for finding in found:
        has_any = True
        yield finding
    if not has_any:
        yield fine(text)


def some(names: Iterable[str], most: int = 8) -> str:
    """Write a list for people: the first few, and how many more there are."""
    listed = sorted(names)
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
