"""What people see: tables, sizes and times, and texts of containers made harmless."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import click

from voldriverd import names

_GAP: Final = "   "
_BYTE_ESCAPES: Final = range(0xDC80, 0xDD00)
"""What os.fsdecode makes of bytes that are no UTF-8."""


def plain(text: str) -> str:
    """Return a text without what a terminal would obey: control characters become a backslash and their code."""
    return text if text.isprintable() else "".join(map(_harmless, text))


def size(size_bytes: int | None) -> str:
    """Write a size for people; - if there is none."""
    return "-" if size_bytes is None else names.format_size(size_bytes)


def time(text: str | None) -> str:
    """Write a time of the API in local time; - if there is none."""
    return "-" if text is None else f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def table(head: Sequence[str], rows: Iterable[Sequence[str | None]], *, right: frozenset[str] = frozenset()) -> None:
    """Print aligned columns; those named in `right` are figures."""
    lines = [tuple(head), *(tuple(plain(cell or "-") for cell in row) for row in rows)]
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            f"{_gap(cell, width)}{cell}" if name in right else f"{cell}{_gap(cell, width)}"
            for name, cell, width in zip(head, line, widths, strict=True)
        ]
        click.echo(_GAP.join(cells).rstrip())


def facts(pairs: Iterable[tuple[str, str | None]]) -> None:
    """Print one fact a line; those without a value are left out."""
    shown = [(name, plain(value)) for name, value in pairs if value is not None]
    width = max(len(name) for name, _ in shown) + 1
    for name, value in shown:
        click.echo(f"{name + ':':<{width}} {value}")


def as_json(value: Any) -> None:
    """Print a resource or a list of them."""
    click.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """Say what is not the result, on standard error."""
    click.echo(plain(text), err=True)


def is_terminal() -> bool:
    """Tell whether somebody sits there who can be asked."""
    return sys.stdin.isatty()


def _gap(cell: str, width: int) -> str:
    return " " * (width - _columns(cell))


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a wide letter, none for a mark upon one."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # noqa: PLC0415 - a megabyte that few need

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _harmless(letter: str) -> str:
    code = ord(letter)
    if letter.isprintable():
        return letter
    if code in _BYTE_ESCAPES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
