"""Bytes that somebody else has written, spoilt: each parser reads them or refuses them in its own words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.torture import fuzz

NASTY = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"volume":' * 20_000,
    b'{"volume":{"id":1e999,"key":"v1"}}\n',
    b"9" * 5_000,
    b"a" * 100_000,
    b'"\\ud800"',
    b"Infinity",
    b"=" * 1_000,
    "²".encode(),
]


@pytest.mark.parametrize("name", fuzz.PARSERS)
@pytest.mark.parametrize("content", NASTY, ids=range(len(NASTY)))
def test_nothing_nasty_breaks_a_parser(name: str, content: bytes) -> None:
    parser = fuzz.PARSERS[name]
    for each in (content, *(good + content for good in parser.examples), *(content + good for good in parser.examples)):
        fuzz.check(parser, each)


@pytest.mark.parametrize("name", fuzz.PARSERS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_spoilt_example_is_read_or_refused(name: str, data: st.DataObject) -> None:
    parser = fuzz.PARSERS[name]
    content = bytearray(data.draw(st.sampled_from(parser.examples)))
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        content[start:end] = data.draw(st.binary(max_size=20) | st.sampled_from(NASTY[-4:]))
    fuzz.check(parser, bytes(content))


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_every_example_is_read_or_refused(name: str) -> None:
    for each in fuzz.PARSERS[name].examples:
        fuzz.check(fuzz.PARSERS[name], each)
