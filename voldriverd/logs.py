"""Lines of the log: `key=value`, with whatever is not one plain word in quotes, so that no value passes for another.

Who logs writes such a line as a template (`"verb=open pool=%s result=%s"`), or gives a `Line`. The template is read
before its values are put in: what a user has typed never becomes a key. An error given as the result is told by its
kind and its text: `result=in_use error="cannot remove volume db: mounted by 3f2c"`.
"""

import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from voldriverd import errors

Facts = Mapping[str, object]
"""What a line tells, by key, in its order; None is not told."""

VALUE_MAX: Final = 4_096
"""Of letters: a name has 255, an error some hundreds; what is longer is cut."""
_PLAIN: Final = re.compile(r"[\w.,:;@/+=?&{}()\[\]-]+", re.ASCII)
_KEY: Final = re.compile(r"(?:^|(?<= ))(?P<key>[A-Za-z_]\w{0,39})=", re.ASCII)
_CONVERSION: Final = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z%]")
_KINDS: Final = {
    errors.Invalid: "invalid",
    errors.NotFound: "not_found",
    errors.Exists: "exists",
    errors.InUse: "in_use",
    errors.Unsupported: "unsupported",
    errors.Unusable: "unusable",
    OSError: "system",
    Exception: "internal",
}


CUT_OFF: Final = "cancelled"
KINDS: Final = (*_KINDS.values(), CUT_OFF)
"""Of errors, as `kind` tells them."""


class Line:
    """One line as facts, behind a word that says what kind of line it is; given to a logger in place of a text."""

    __slots__ = ("facts", "word")

    def __init__(self, facts: Facts, *, word: str = "") -> None:
        """Keep what is told: nothing is written until somebody wants the line."""
        self.facts = {key: shown for key, shown in facts.items() if shown is not None}
        self.word = word

    def __str__(self) -> str:
        return _join(self.word, {key: _text(value) for key, value in self.facts.items()})


class Formatter(logging.Formatter):
    """Writes lines for people and for `grep`: time, level, line."""

    def __init__(self) -> None:
        """Have the one form of it."""
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - named by logging
        """Put the line into its place."""
        record.message = text(record)
        return super().formatMessage(record)


def text(record: logging.LogRecord) -> str:
    """Return the line of a record, without a traceback; what is no `key=value` is as its author wrote it."""
    told = facts(record)
    return _join(_word(record), told) if told else record.getMessage()


def facts(record: logging.LogRecord) -> dict[str, str]:
    """Return the facts of a record, empty if it is no `key=value`."""
    if isinstance(record.msg, Line):
        return {key: _text(value) for key, value in record.msg.facts.items()}
    parts = _parts(record.msg) if isinstance(record.msg, str) else ()
    values = record.args if isinstance(record.args, tuple) else (record.args,)
    if not parts or sum(part.takes for part in parts) != len(values):
        return {}
    return dict(_filled(parts, values))


def kind(error: BaseException) -> str:
    """Return what kind of error it is, in one word of a closed set; what is no Exception has cut the work off."""
    return next((word for known, word in _KINDS.items() if isinstance(error, known)), CUT_OFF)


def shown(value: str) -> str:
    """Write a value so that it cannot be taken for another field or line."""
    cut = value[:VALUE_MAX]
    return cut if _PLAIN.fullmatch(cut) else json.dumps(cut)


class _Part(NamedTuple):
    """One key of a template, and what stands behind it."""

    key: str
    form: str
    takes: int
    """How many values go into it."""


@functools.lru_cache(maxsize=512)  # templates are constants
def _parts(template: str) -> tuple[_Part, ...]:
    """Return the keys of a template; none if it is no `key=value` from its beginning."""
    found = list(_KEY.finditer(template))
    if not found or found[0].start() != 0:
        return ()
    ends = [*(each.start() for each in found[1:]), len(template)]
    forms = [template[each.end() : end].rstrip(" ") for each, end in zip(found, ends, strict=True)]
    return tuple(
        _Part(each["key"], form, sum(one != "%%" for one in _CONVERSION.findall(form)))
        for each, form in zip(found, forms, strict=True)
    )


def _filled(parts: tuple[_Part, ...], values: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    at = 0
    for part in parts:
        own, at = values[at : at + part.takes], at + part.takes
        if part.key == "result" and part.form == "%s" and isinstance(own[0], BaseException):
            yield "result", kind(own[0])
            yield "error", _text(own[0])
        else:
            yield part.key, part.form % own


def _word(record: logging.LogRecord) -> str:
    return record.msg.word if isinstance(record.msg, Line) else ""


def _join(word: str, told: Mapping[str, str]) -> str:
    line = " ".join(f"{key}={shown(value)}" for key, value in told.items())
    return f"{word} {line}" if word else line


def _text(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
