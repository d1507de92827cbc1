"""Ids such as `1v5`: a 1, the letters of the type, a number (rancher-api 3)."""

import re
from typing import Final

from voldriverd.api.rancher.schema import Schema

_ID: Final = re.compile(r"(?:1([a-z]+))?(-?[0-9]{1,18})", re.ASCII)
"""The number of a pool that was never opened is negative."""


def show(schema: Schema, number: int) -> str:
    """Return the id of a row of a type."""
    return f"1{schema.letters}{number}"


def parse(schema: Schema, text: str) -> int | None:
    """Return the number of an id, plain or with the letters of this very type; None if it is none."""
    found = _ID.fullmatch(text)
    if found is None or schema.letters is None or found[1] not in {None, schema.letters}:
        return None
    return int(found[2])
