"""Manifests, lists, sealed objects: what is written is what is read, whatever it is."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import backups
from voldriverd.backup import lists, sealing
from voldriverd.backup import manifest as manifests
from voldriverd.backup.lists import Kind
from voldriverd.backup.manifest import Body, Malformed, Manifest, SnapshotCard, VolumeCard
from voldriverd.driver import PART_MAX, StreamFormat, TreeOptions
from voldriverd.model import Secret

TEXTS = st.text(max_size=30)
UUIDS = st.uuids().map(str)
COUNTS = st.integers(0, (1 << 63) - 1)
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - with a zone
CHUNK_NAMES = st.binary(min_size=32, max_size=32).map(bytes.hex)
CHUNKS = st.tuples(CHUNK_NAMES, st.integers(1, PART_MAX))


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    form = draw(st.sampled_from(StreamFormat))
    return Body(
        format=form,
        version=draw(st.integers(1, 2)),
        image_bytes=draw(COUNTS) if form is StreamFormat.BLOCKS else None,
        content_bytes=draw(COUNTS),
        stored_bytes=draw(COUNTS),
        notes=tuple(draw(st.lists(TEXTS, max_size=3))),
        lists=tuple(draw(st.lists(CHUNKS, max_size=3))),
    )


@st.composite
def drawn(draw: st.DrawFn) -> Manifest:
    parent = draw(st.none() | UUIDS)
    texts_by_name = st.dictionaries(TEXTS, TEXTS, max_size=3)
    texts_or_none = st.none() | TEXTS
    return Manifest(
        uuid=draw(UUIDS),
        created_at=draw(TIMES),
        taken_at=draw(TIMES),
        host=draw(TEXTS),
        volume=VolumeCard(
            draw(UUIDS),
            draw(TEXTS),
            draw(TEXTS),
            draw(texts_or_none),
            draw(texts_by_name),
            draw(texts_by_name),
            draw(st.none() | COUNTS),
        ),
        tree=TreeOptions(
            fs=draw(texts_or_none),
            thick=draw(st.booleans()),
            nocow=draw(st.booleans()),
            compression=draw(texts_or_none),
        ),
        snapshot=SnapshotCard(draw(UUIDS), draw(texts_or_none), draw(texts_or_none)),
        name=draw(texts_or_none),
        description=draw(texts_or_none),
        parent=parent,
        depth=draw(st.integers(1, 99)) if parent else 0,
        is_removed=draw(st.booleans()),
        body=draw(bodies()),
    )


@given(drawn())
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert manifests.from_json(manifests.to_json(manifest)) == manifest


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXTS, st.lists))
def test_any_other_json_is_refused(found: object) -> None:
    with pytest.raises(Malformed):
        manifests.from_json(repr(found).encode())


@given(drawn(), st.data())
def test_a_cut_manifest_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = manifests.to_json(manifest)
    with pytest.raises(Malformed):
        manifests.from_json(content[: data.draw(st.integers(0, len(content) - 1))])


def test_fields_of_a_later_version_of_us_are_left_out() -> None:
    manifest = replace(backups.draft(), body=Body(StreamFormat.TAR, 1, None, 1, 1, (), ()))
    content = manifests.to_json(manifest).removesuffix(b"}") + b', "colour": "blue"}'
    assert manifests.from_json(content) == manifest


@given(
    st.lists(CHUNKS, max_size=50),
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40)), max_size=50),
    st.lists(st.tuples(st.binary(max_size=20), st.integers(0, 1 << 40), st.integers(1, 1 << 40)), max_size=50),
)
def test_lists_come_back(
    chunks: list[tuple[str, int]], ranges: list[tuple[int, int]], members: list[tuple[bytes, int, int]]
) -> None:
    pieces: list[bytes] = []
    index = [(path.decode("utf-8", "surrogateescape"), start, length) for path, start, length in members]
    writer = lists.Writer(pieces.append)
    for kind, rows in ((Kind.CHUNKS, chunks), (Kind.INDEX, index), (Kind.HOLES, ranges), (Kind.RANGES, ranges)):
        for row in rows:
            writer.add(kind, *row)
    writer.close()
    assert list(lists.rows(pieces, Kind.CHUNKS)) == chunks
    assert list(lists.rows(pieces, Kind.RANGES)) == ranges
    assert list(lists.rows(pieces, Kind.HOLES)) == ranges
    assert list(lists.rows(pieces, Kind.INDEX)) == index


def test_long_lists_are_many_pieces_of_whole_lines() -> None:
    pieces: list[bytes] = []
    writer = lists.Writer(pieces.append)
    for number in range(60_000):
        writer.add(Kind.CHUNKS, f"{number:064x}", 1)
    writer.add(Kind.INDEX, "p" * 60_000, 0, 1)
    writer.close()
    assert len(pieces) == 5
    assert all(piece.endswith(b"\n") and len(piece) < PART_MAX for piece in pieces)
    assert max(len(line) for piece in pieces for line in piece.splitlines()) < 2 * lists.LINE_CHARACTERS
    assert [row[0] for row in lists.rows(pieces, Kind.CHUNKS)] == [f"{number:064x}" for number in range(60_000)]


@pytest.mark.parametrize("master", [None, bytes(32)])
def test_a_sealed_object_is_bound_to_its_name(master: bytes | None) -> None:
    volume = sealing.Volume(master, "11111111-1111-1111-1111-111111111111")
    other = sealing.Volume(master, "22222222-2222-2222-2222-222222222222")
    name = volume.name(b"content")
    packed = volume.pack_chunk(name, b"content")
    assert volume.open_chunk(name, 7, packed) == b"content"
    for wrong, length in ((volume.name(b"another"), 7), (name, 8)):
        with pytest.raises(sealing.Broken):
            volume.open_chunk(wrong, length, packed)
    if master is not None:
        assert volume.pack_chunk(name, b"content") != packed  # the nonce is new each time
        assert other.name(b"content") != name
        with pytest.raises(sealing.Broken):
            other.open_chunk(name, 7, packed)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 30},
        {"n": 3},
        {"n": 1},
        {"n": 2.0},
        {"r": 1 << 20},
        {"p": 0},
        {"p": True},
        {"cipher": "ROT13"},
        {"kdf": None},
        {"salt": "zz"},
        {"key": "00"},
        {"key": 5},
    ],
)
def test_an_encryption_that_we_do_not_know_is_refused(change: dict[str, object]) -> None:
    made = sealing.new("x", Secret("y"))
    found = json.loads(made)
    del found["check"]
    found["encryption"] |= change
    forged = json.dumps(found | {"check": sealing._check(found)}).encode()
    with pytest.raises(sealing.Broken):
        sealing.parse(forged)


def test_the_master_key_is_bound_to_its_repository() -> None:
    found = sealing.parse(sealing.new("x", Secret("y")))
    assert len(sealing.unwrap(found, Secret("y"))) == 32
    with pytest.raises(sealing.WrongPassphrase):
        sealing.unwrap(replace(found, uuid="z"), Secret("y"))
