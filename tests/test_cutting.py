"""backup/cutting: streams in chunks, the same ones for the same data, and back."""

import os
import random
from collections.abc import Iterable, Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_index import archived, file, rows_of
from voldriverd.backup import cutting
from voldriverd.backup.cutting import Cut
from voldriverd.backup.index import Row
from voldriverd.backup.ranges import Ranges
from voldriverd.driver import PART_MAX, Part, Stream, StreamFormat
from voldriverd.errors import Unusable

_BLOCK: Final = 4_096


def stream(form: StreamFormat, parts: Iterable[Part], *, is_incremental: bool = False) -> Stream:
    image_bytes = 1 << 40 if form is StreamFormat.BLOCKS else None
    return Stream(form, 1, is_incremental, image_bytes, None, iter(parts))


def pieces(content: bytes, seed: int = 0, most: int = PART_MAX) -> Iterator[Part]:
    """Yield a content in parts of any size."""
    chance = random.Random(seed)
    position = 0
    while position < len(content):
        piece = content[position : position + chance.randint(1, most)]
        yield Part(piece, len(piece))
        position += len(piece)


def extents(*found: tuple[int, int | bytes]) -> list[Part]:
    """Return parts of an image: (offset, data), or (offset, length) of a hole."""
    return [
        Part(None, what, offset) if isinstance(what, int) else Part(what, len(what), offset) for offset, what in found
    ]


def content(chunks: Iterable[bytes]) -> Iterator[Part]:
    return (Part(chunk, len(chunk)) for chunk in chunks)


def back(
    form: StreamFormat,
    contents: Iterable[Part],
    cut: Cut | None = None,
    rows: Iterable[Row] | None = None,
) -> list[Part]:
    """Return the parts that are made of chunks."""
    ranges, holes = (cut.ranges, cut.holes) if cut else (Ranges(), Ranges())
    return list(cutting.parts(form, iter(contents), ranges=ranges, holes=holes, index=rows))


def joined(parts: Iterable[Part]) -> bytes:
    return b"".join(part.data if part.data is not None else bytes(part.length) for part in parts)


# BTRFS


@pytest.mark.parametrize("length", [0, 1, PART_MAX - 1, PART_MAX, PART_MAX + 1, 3 * PART_MAX + 17])
def test_a_btrfs_stream_is_cut_at_every_part_max(length: int) -> None:
    data = os.urandom(length)
    for seed in (1, 2):
        chunks = list(Cut(stream(StreamFormat.BTRFS, pieces(data, seed))).chunks())
        assert b"".join(chunks) == data
        assert [len(chunk) for chunk in chunks[:-1]] == [PART_MAX] * (len(chunks) - 1)
        assert all(0 < len(chunk) <= PART_MAX for chunk in chunks)
    assert joined(back(StreamFormat.BTRFS, content(chunks))) == data


# BLOCKS


def test_a_whole_image_is_cut_at_every_part_max_of_the_image() -> None:
    chance = random.Random(3)
    image = chance.randbytes(5 * PART_MAX)
    one = extents((0, image[:_BLOCK]), (_BLOCK, PART_MAX), (PART_MAX + _BLOCK, image[PART_MAX + _BLOCK : 4 * PART_MAX]))
    cut = Cut(stream(StreamFormat.BLOCKS, _split(one)))
    assert list(cut.chunks()) == [
        image[:_BLOCK],
        image[PART_MAX + _BLOCK : 2 * PART_MAX],
        image[2 * PART_MAX : 3 * PART_MAX],
        image[3 * PART_MAX : 4 * PART_MAX],
    ]
    assert list(cut.ranges) == [(0, _BLOCK), (PART_MAX + _BLOCK, 3 * PART_MAX - _BLOCK)]
    assert list(cut.holes) == [(_BLOCK, PART_MAX)]


def _split(parts: list[Part]) -> Iterator[Part]:
    """Yield the parts, those that are too long in several."""
    for part in parts:
        assert part.offset is not None
        for start in range(0, part.length, PART_MAX - _BLOCK):
            length = min(PART_MAX - _BLOCK, part.length - start)
            data = None if part.data is None else part.data[start : start + length]
            yield Part(data, length, part.offset + start)


def test_what_lies_in_one_window_of_a_whole_image_is_one_chunk() -> None:
    parts = extents((0, b"a" * _BLOCK), (3 * _BLOCK, b"b" * _BLOCK), (PART_MAX, b"c" * _BLOCK), (9 * PART_MAX, b"d"))
    chunks = list(Cut(stream(StreamFormat.BLOCKS, parts)).chunks())
    assert chunks == [b"a" * _BLOCK + b"b" * _BLOCK, b"c" * _BLOCK, b"d"]


def test_an_increment_is_packed() -> None:
    parts = [Part(os.urandom(_BLOCK), _BLOCK, number * 3 * PART_MAX) for number in range(1_500)]
    cut = Cut(stream(StreamFormat.BLOCKS, parts, is_incremental=True))
    chunks = list(cut.chunks())
    assert [len(chunk) for chunk in chunks] == [PART_MAX, 1_500 * _BLOCK - PART_MAX]
    assert list(cut.ranges) == [(number * 3 * PART_MAX, _BLOCK) for number in range(1_500)]
    assert joined(back(StreamFormat.BLOCKS, content(chunks), cut)) == b"".join(chunks)


def test_a_second_whole_image_shares_all_chunks_but_those_that_changed() -> None:
    chance = random.Random(4)
    image = bytearray(chance.randbytes(6 * PART_MAX))
    first = list(Cut(stream(StreamFormat.BLOCKS, _split(extents((0, bytes(image)))))).chunks())
    image[2 * PART_MAX + 5] ^= 1
    second = list(Cut(stream(StreamFormat.BLOCKS, _split(extents((0, bytes(image[:-_BLOCK])))))).chunks())
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, True, True, False]


@given(st.data())
def test_an_image_comes_back_as_it_was(data: st.DataObject) -> None:
    parts = []
    position = 0
    for _ in range(data.draw(st.integers(0, 12))):
        position += data.draw(st.sampled_from([0, 1, _BLOCK, PART_MAX, 1 << 35]))
        length = data.draw(st.sampled_from([1, _BLOCK, 100_000, PART_MAX]))
        is_hole = data.draw(st.booleans())
        parts.append(Part(None if is_hole else bytes([position % 251]) * length, length, position))
        position += length
    cut = Cut(stream(StreamFormat.BLOCKS, parts, is_incremental=data.draw(st.booleans())))
    chunks = list(cut.chunks())
    assert all(0 < len(chunk) <= PART_MAX for chunk in chunks)
    found = back(StreamFormat.BLOCKS, content(chunks), cut)
    assert all(part.data is None or 0 < part.length <= PART_MAX for part in found)
    assert _bytes_at(found) == _bytes_at(parts)


def _bytes_at(parts: Iterable[Part]) -> list[tuple[int, int, bytes | None]]:
    """Return (offset, length, what stands there) with adjacent parts merged."""
    found: list[tuple[int, int, bytes | None]] = []
    for part in parts:
        assert part.offset is not None
        if found and found[-1][0] + found[-1][1] == part.offset and (found[-1][2] is None) == (part.data is None):
            offset, length, before = found.pop()
            data = None if before is None or part.data is None else before + part.data
            found.append((offset, length + part.length, data))
        else:
            found.append((part.offset, part.length, part.data))
    return found


def test_a_large_image_takes_little_memory() -> None:
    many = 300_000
    parts = (Part(b"x", 1, number * _BLOCK) for number in range(many))
    cut = Cut(stream(StreamFormat.BLOCKS, parts, is_incremental=True))
    assert sum(len(chunk) for chunk in cut.chunks()) == many == len(cut.ranges)
    assert len(cut.ranges._flat) * cut.ranges._flat.itemsize == 16 * many


def test_a_lost_chunk_of_an_image_becomes_a_hole() -> None:
    cut = Cut(stream(StreamFormat.BLOCKS, extents((0, b"a" * _BLOCK), (PART_MAX, b"b" * _BLOCK), (2 * PART_MAX, b"c"))))
    first, second, third = content(list(cut.chunks()))
    found = back(StreamFormat.BLOCKS, [first, Part(None, second.length), third], cut)
    assert found == extents((0, b"a" * _BLOCK), (PART_MAX, _BLOCK), (2 * PART_MAX, b"c"))


@pytest.mark.parametrize(
    ("ranges", "holes", "length"),
    [
        ([(0, 10)], [], 9),
        ([(0, 10)], [], 11),
        ([(0, 10)], [], 0),
        ([], [], 1),
        ([(0, 10)], [(9, 5)], 10),
        ([(5, 10)], [(0, 6)], 10),
        ([(5, 1), (7, 1)], [(0, 100)], 2),
    ],
)
def test_lists_that_do_not_fit_are_unusable(
    ranges: list[tuple[int, int]], holes: list[tuple[int, int]], length: int
) -> None:
    parts = cutting.parts(
        StreamFormat.BLOCKS, content([bytes(length)]), ranges=Ranges(ranges), holes=Ranges(holes), index=None
    )
    with pytest.raises(Unusable, match="cannot read the backup"):
        list(parts)


# TAR


def test_an_archive_is_cut_by_content_however_its_parts_come() -> None:
    data = random.Random(5).randbytes(40 << 20)
    first = list(Cut(stream(StreamFormat.TAR, pieces(data, 1))).chunks())
    assert list(Cut(stream(StreamFormat.TAR, pieces(data, 2, most=50_000))).chunks()) == first
    assert b"".join(first) == data
    lengths = [len(chunk) for chunk in first]
    assert max(lengths) <= PART_MAX
    assert min(lengths[:-1]) >= cutting.TAR_MIN
    assert cutting.TAR_AVERAGE / 2 < sum(lengths) / len(lengths) < cutting.TAR_AVERAGE * 2


def test_what_is_inserted_moves_few_cuts() -> None:
    data = random.Random(6).randbytes(32 << 20)
    first = set(Cut(stream(StreamFormat.TAR, pieces(data))).chunks())
    changed = data[: 10 << 20] + b"inserted" + data[10 << 20 :]
    second = list(Cut(stream(StreamFormat.TAR, pieces(changed))).chunks())
    assert len([chunk for chunk in second if chunk not in first]) <= 3


def test_zeros_are_cut_into_the_longest_chunks() -> None:
    chunks = list(Cut(stream(StreamFormat.TAR, pieces(bytes(10 << 20)))).chunks())
    assert [len(chunk) for chunk in chunks] == [PART_MAX, PART_MAX, 2 << 20]


@pytest.mark.parametrize("length", [0, 1, cutting.TAR_MIN, PART_MAX, 2 * PART_MAX])
def test_short_archives_are_cut_too(length: int) -> None:
    data = os.urandom(length)
    chunks = list(Cut(stream(StreamFormat.TAR, pieces(data))).chunks())
    assert b"".join(chunks) == data
    assert all(chunks)


def test_the_index_is_built_on_the_way() -> None:
    data = archived(file("a", b"content"), file("b", bytes(100_000)))
    cut = Cut(stream(StreamFormat.TAR, pieces(data)))
    assert b"".join(cut.chunks()) == data
    assert [path for path, _, _ in cut.index] == ["a", "b"]


@pytest.mark.parametrize("form", StreamFormat)
def test_what_the_stream_raises_passes_through(form: StreamFormat) -> None:
    def parts() -> Iterator[Part]:
        yield Part(b"x", 1, 0 if form is StreamFormat.BLOCKS else None)
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"):
        list(Cut(stream(form, parts())).chunks())


# TAR with chunks that are lost


def _damaged(data: bytes, *lost: tuple[int, int]) -> bytes:
    """Return an archive that comes back with these stretches lost."""
    parts = []
    position = 0
    for start, end in lost:
        parts += [Part(data[position:start], start - position), Part(None, end - start)]
        position = end
    parts.append(Part(data[position:], len(data) - position))
    found = joined(back(StreamFormat.TAR, parts, rows=rows_of(data)))
    assert len(found) == len(data)
    return found


_FILES: Final = archived(*(file(str(number), bytes([65 + number]) * 10_000) for number in range(5)))
_ROWS: Final = rows_of(_FILES)


def _members(data: bytes) -> dict[str, bytes]:
    """Return what of _FILES is left as it was, each with its content."""
    found = {}
    for path, start, length in _ROWS:
        if data[start : start + length - 10_240] == _FILES[start : start + length - 10_240]:
            found[path] = data[start + length - 10_240 : start + length]
    return found


def test_lost_content_is_zeros_and_the_headers_stay() -> None:
    _, start, length = _ROWS[1]
    lost = start + length - 5_000, start + length - 1_000
    assert _damaged(_FILES, lost) == _FILES[: lost[0]] + bytes(4_000) + _FILES[lost[1] :]


def test_a_member_whose_headers_are_lost_is_lost_whole() -> None:
    _, start, length = _ROWS[2]
    found = _damaged(_FILES, (_ROWS[1][1] + 5_000, start + 600))
    assert found[start : start + length] == bytes(length)
    assert set(_members(found)) == {"0", "1", "3", "4"}


def test_a_member_whose_headers_end_in_what_is_lost_is_lost_whole() -> None:
    _, start, length = _ROWS[2]
    found = _damaged(_FILES, (start + 600, start + 5_000))
    assert found[start + 600 : start + length] == bytes(length - 600)
    assert found[start + length :] == _FILES[start + length :]


def test_a_loss_that_begins_with_the_headers_loses_the_member() -> None:
    _, start, length = _ROWS[2]
    found = _damaged(_FILES, (start, start + 700))
    assert found == _FILES[:start] + bytes(length) + _FILES[start + length :]


def test_a_loss_up_to_a_member_leaves_that() -> None:
    _, start, length = _ROWS[2]
    found = _damaged(_FILES, (start, start + length))
    assert found == _FILES[:start] + bytes(length) + _FILES[start + length :]


def test_losses_one_after_the_other_are_as_one() -> None:
    _, start, length = _ROWS[2]
    one = _damaged(_FILES, (start + 100, start + 3_000))
    assert _damaged(_FILES, (start + 100, start + 1_000), (start + 1_000, start + 3_000)) == one
    assert _damaged(_FILES, (start + 100, start + 200), (start + 1_500, start + 3_000)) == one
    assert one[start + 100 : start + length] == bytes(length - 100)


def test_each_of_two_members_whose_headers_end_in_what_is_lost_is_lost_whole() -> None:
    (_, first, _), (_, second, length) = _ROWS[1], _ROWS[3]
    found = _damaged(_FILES, (first + 600, first + 5_000), (second + 600, second + 5_000))
    assert found[second + 600 : second + length] == bytes(length - 600)
    assert set(_members(found)) == {"0", "2", "4"}


def test_two_losses_with_whole_members_between() -> None:
    first, second = _ROWS[1][1], _ROWS[3][1]
    found = _damaged(_FILES, (first + 10, first + 700), (second + 5_000, second + 5_100))
    assert set(_members(found)) == {"0", "2", "3", "4"}
    assert found[second + 5_000 : second + 5_100] == bytes(100)


@given(st.lists(st.integers(0, len(_FILES)), min_size=2, max_size=6, unique=True))
def test_whatever_is_lost_the_other_members_stay(cuts: list[int]) -> None:
    cuts = sorted(cuts[: len(cuts) // 2 * 2])
    lost = list(zip(cuts[::2], cuts[1::2], strict=True))
    found = _damaged(_FILES, *lost)
    for path, start, length in _ROWS:
        if not any(begin < start + length and start < end for begin, end in lost):
            assert found[start : start + length] == _FILES[start : start + length], path


# Ranges


def test_adjacent_ranges_are_merged() -> None:
    ranges = Ranges([(0, 10), (10, 5), (20, 1)])
    assert list(ranges) == [(0, 15), (20, 1)]
    assert (len(ranges), ranges.end, ranges.total_bytes) == (2, 21, 16)


def test_no_ranges_end_at_zero() -> None:
    assert (len(Ranges()), Ranges().end, Ranges().total_bytes) == (0, 0, 0)


@pytest.mark.parametrize(("offset", "length"), [(9, 1), (10, 0), (10, -1), (-1, 5), (1 << 63, 1), (10, 1 << 63)])
def test_a_range_that_is_not_behind_the_others_is_refused(offset: int, length: int) -> None:
    ranges = Ranges([(0, 10)])
    with pytest.raises(ValueError, match="range"):
        ranges.add(offset, length)


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 0, []),
        (0, 30, [(100, 10), (200, 20)]),
        (5, 10, [(105, 5), (200, 5)]),
        (10, 1, [(200, 1)]),
        (29, 99, [(219, 1)]),
        (30, 5, []),
    ],
)
def test_what_bytes_of_the_chunks_are_where_in_the_image(
    start: int, length: int, expected: list[tuple[int, int]]
) -> None:
    assert list(Ranges([(100, 10), (200, 20)]).within(start, length)) == expected
