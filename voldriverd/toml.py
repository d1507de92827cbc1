"""TOML read key by key: a table knows its keys, a value is parsed where it is asked for, and a refusal names both."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from voldriverd import names
from voldriverd.errors import Invalid

FILE_MAX_BYTES: Final = 1 << 20
"""Ten thousand tables; more than that is no configuration."""

T = TypeVar("T")
D = TypeVar("D")
N = TypeVar("N", int, float)


def read(file: Path) -> Mapping[str, object]:
    """Read a whole file. Raises Invalid: unreadable, too large, not TOML."""
    try:
        with file.open("rb") as reader:
            content = reader.read(FILE_MAX_BYTES + 1)
    except OSError as err:
        raise Invalid(f"cannot use it: {err.strerror}") from err
    if len(content) > FILE_MAX_BYTES:
        raise Invalid(f"cannot use it: it has more than {FILE_MAX_BYTES} bytes")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as err:  # ValueError: not TOML, or not UTF-8
        raise Invalid(f"cannot use it: it is not TOML: {err}") from err


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the file, without unknown keys; `prefix` stands before its keys in errors."""

    values: Mapping[str, object]
    prefix: str
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in self.values:
            if key not in self.keys:
                thing = f"[{self.prefix.removesuffix('.')}] key" if self.prefix else "key"
                names.refuse_unknown(key, self.keys, thing=thing, field=f"{self.prefix}{key}")

    def get(self, key: str, parse: names.Parser[T], default: D) -> T | D:
        """Return the parsed value of a key, or the default if it is not given."""
        return self.need(key, parse) if key in self.values else default

    def need(self, key: str, parse: names.Parser[T]) -> T:
        """Return the parsed value of a key that must be given."""
        field = f"{self.prefix}{key}"
        if key not in self.values:
            raise Invalid(f"cannot use [{self.prefix.removesuffix('.')}]: it has no {key}", field=field)
        return parse(names.as_text(self.values[key], field=field), field=field)

    def section(self, key: str, keys: tuple[str, ...]) -> "Section":
        """Return the table of that name, empty if it is not given."""
        values = self.values.get(key, {})
        field = f"{self.prefix}{key}"
        if not isinstance(values, dict):
            raise Invalid(f"cannot use {field}: it is a table, as in [{field}]", field=field)
        return Section(values, f"{field}.", keys)

    def sections(self, key: str, keys: tuple[str, ...]) -> Iterator[tuple[str, "Section"]]:
        """Yield the tables below a name, with the checked names of their own."""
        values = self.values.get(key, {})
        if not isinstance(values, dict):
            raise Invalid(f"cannot use {key}: it holds tables, as in [{key}.NAME]", field=key)
        for name in values:
            names.name(name, thing=key.removesuffix("s"), field=key)
            yield name, Section(values, f"{key}.", tuple(values)).section(name, keys)


def within(parse: names.Parser[N], low: N, high: N, rule: str) -> names.Parser[N]:
    """Return a parser that takes low to high only; `rule` says in words what is right."""

    def parse_within(text: str, *, field: str) -> N:
        value = parse(text, field=field)
        if not low <= value <= high:
            names.refuse(field, text, rule)
        return value

    return parse_within


def line(key: str, value: object | None, *, absent: str = "") -> str:
    """Write a key; None becomes a comment that says what its absence means."""
    return f"# {key}: {absent}" if value is None else f"{key} = {quoted(str(value))}"


def quoted(text: str) -> str:
    """Write a printable text as a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False)
