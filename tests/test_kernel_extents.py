"""Maps of extents: arithmetic against a model of single bytes, and the real maps of btrfs, xfs and ext4."""

import errno
import fcntl
import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scratch import Scratch
from voldriverd.kernel import content, extents, fs, ioctl, run
from voldriverd.kernel.extents import Extent, Found, Kind, Span, Spans

KIB: Final = 1 << 10
MIB: Final = 1 << 20
BLOCK: Final = 4096
FICLONERANGE: Final = ioctl.iow(0x94, 13, 32)

Action = tuple[str, int, int, int]

_names: Final = itertools.count()
hosts = pytest.mark.parametrize("host", ["btrfs", "xfs", "ext4"])
reflinking = pytest.mark.parametrize("host", ["btrfs", "xfs"])
root = pytest.mark.root

# arithmetic


@st.composite
def _maps(draw: st.DrawFn) -> list[Extent]:
    """Draw extents as a kernel may tell them: ascending, with holes or without, on a disk with few places."""
    found = []
    position = 0
    for _ in range(draw(st.integers(0, 6))):
        start = position + draw(st.integers(0, 3))
        position = start + draw(st.integers(1, 5))
        physical = draw(st.integers(0, 8)) + draw(st.sampled_from([0, start]))
        found.append(Extent(start, position, physical, draw(st.sampled_from(Kind))))
    return found


def _verdicts(spans: Sequence[Span] | Spans) -> dict[int, Found]:
    return {at: span.found for span in spans for at in range(span.start, span.end)}


def _at(found: Sequence[Extent], at: int) -> tuple[Kind, int] | None:
    """Return where the map says that a byte is."""
    for extent in found:
        if extent.start <= at < extent.end:
            return extent.kind, extent.physical + (at - extent.start if extent.kind is Kind.PLAIN else 0)
    return None


def _verdict(here: tuple[Kind, int] | None, there: tuple[Kind, int] | None) -> Found | None:
    match here, there:
        case None, None:
            return None
        case None, _:
            return Found.HOLE
        case (Kind.PLAIN, one), (Kind.PLAIN, other) if one == other:
            return None
        case (Kind.ENCODED, one), (Kind.ENCODED, other) if one == other:
            return Found.DOUBT
    return Found.DATA


@given(_maps(), _maps())
def test_every_byte_is_judged_by_its_place(one: list[Extent], other: list[Extent]) -> None:
    verdicts = {at: _verdict(_at(one, at), _at(other, at)) for at in range(64)}
    spans = list(extents.compare(one, other))
    assert _verdicts(spans) == {at: verdict for at, verdict in verdicts.items() if verdict is not None}
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))


def _split(found: Sequence[Extent], cuts: Sequence[int]) -> Iterator[Extent]:
    for extent in found:
        edges = [extent.start, *sorted({cut for cut in cuts if extent.start < cut < extent.end}), extent.end]
        for start, end in itertools.pairwise(edges):
            shift = start - extent.start if extent.kind is Kind.PLAIN else 0
            yield Extent(start, end, extent.physical + shift, extent.kind)


@given(_maps(), _maps(), st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60)))
def test_it_does_not_matter_where_the_kernel_cut(
    one: list[Extent], other: list[Extent], cuts: list[int], other_cuts: list[int]
) -> None:
    split = extents.compare(_split(one, cuts), _split(other, other_cuts))
    assert list(Spans(split)) == list(Spans(extents.compare(one, other)))


@given(_maps(), _maps())
def test_what_differs_on_a_disk_is_found(one: list[Extent], other: list[Extent]) -> None:
    disk = {Kind.PLAIN: 100, Kind.ENCODED: 500, Kind.UNKNOWN: 900}
    images = []
    for unknown, found in enumerate((one, other)):
        held = [0] * 64
        for extent in found:
            for inside in range(extent.end - extent.start):
                held[extent.start + inside] = disk[extent.kind] + extent.physical + inside
                if extent.kind is Kind.ENCODED:  # from which part of it, the map does not tell
                    held[extent.start + inside] += unknown * (inside + 1)
                elif extent.kind is Kind.UNKNOWN:
                    held[extent.start + inside] += unknown
        images.append(held)
    verdicts = _verdicts(list(extents.compare(one, other)))
    assert {at for at in range(64) if images[0][at] != images[1][at]} <= set(verdicts)
    assert all(images[0][at] == 0 for at, found in verdicts.items() if found is Found.HOLE)


_spans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.sampled_from(Found)), max_size=8)


def _placed(numbers: Sequence[tuple[int, int, Found]]) -> list[Span]:
    spans = []
    position = 0
    for gap, length, found in numbers:
        spans.append(Span(position + gap, position + gap + length, found))
        position += gap + length
    return spans


@given(_spans)
def test_spans_that_touch_and_are_alike_are_one(numbers: list[tuple[int, int, Found]]) -> None:
    spans = _placed(numbers)
    joined = list(Spans(spans))
    assert _verdicts(joined) == _verdicts(spans)
    assert not any(one.end == other.start and one.found is other.found for one, other in itertools.pairwise(joined))
    for found in Found:
        assert Spans(spans).count_bytes(found) == list(_verdicts(spans).values()).count(found)


@given(_spans, _spans)
def test_what_others_lack_is_counted(
    numbers: list[tuple[int, int, Found]], others: list[tuple[int, int, Found]]
) -> None:
    missing = set(_verdicts(_placed(numbers))) - set(_verdicts(_placed(others)))
    assert extents.missing_bytes(_placed(numbers), _placed(others)) == len(missing)


# reading


@pytest.fixture
def host_directory(session_scratch: Scratch) -> Callable[[str], Path]:
    """Return what makes directories on file systems that the session shares."""

    def make(host: str) -> Path:
        directory = session_scratch.shared(f"extents-{host}", host) / f"own{next(_names)}"
        directory.mkdir()
        return directory

    return make


class File:
    """A file of random content, never synced by hand."""

    def __init__(self, path: Path, size_bytes: int = 0) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self.fd, random.randbytes(size_bytes), 0)

    def close(self) -> None:
        os.close(self.fd)

    def write(self, at: int, length: int) -> None:
        os.pwrite(self.fd, random.randbytes(length), at)

    def punch(self, at: int, length: int) -> None:
        content.punch(self.fd, at, at + length)

    def reserve(self, at: int, length: int) -> None:
        run.run(["fallocate", "-o", str(at), "-l", str(length), str(self.path)])

    def clone(self) -> "File":
        clone = File(self.path.with_name(f"clone{next(_names)}"))
        fs.reflink(self.fd, clone.fd)
        return clone

    def share(self, source: int, target: int, length: int) -> None:
        """Let a range have the extents of another range of the same file."""
        fcntl.ioctl(self.fd, FICLONERANGE, struct.pack("=qQQQ", self.fd, source, length, target))

    def map(self, start: int = 0, end: int | None = None) -> list[Extent]:
        return list(extents.read(self.fd, start, os.fstat(self.fd).st_size if end is None else end))

    def content(self) -> bytes:
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)


def _ranges(found: Sequence[Extent]) -> list[tuple[int, int]]:
    """Return the ranges of a map, joined."""
    return [(span.start, span.end) for span in Spans(Span(each.start, each.end, Found.DATA) for each in found)]


@root
@hosts
def test_data_holes_and_reserved_space_are_told_apart(host_directory: Callable[[str], Path], host: str) -> None:
    with closing(File(host_directory(host) / "file", MIB)) as file:
        file.reserve(MIB, MIB)
        os.ftruncate(file.fd, 4 * MIB)
        file.write(3 * MIB, BLOCK)
        found = file.map()
    assert _ranges(found) == [(0, MIB), (3 * MIB, 3 * MIB + BLOCK)]
    assert {extent.kind for extent in found} == {Kind.PLAIN}


@root
@hosts
def test_what_is_written_in_reserved_space_is_data(host_directory: Callable[[str], Path], host: str) -> None:
    with closing(File(host_directory(host) / "file")) as file:
        file.reserve(0, MIB)
        file.write(64 * KIB, BLOCK)
        assert _ranges(file.map()) == [(64 * KIB, 64 * KIB + BLOCK)]


@root
@hosts
def test_an_empty_file_and_one_of_holes_have_no_extents(host_directory: Callable[[str], Path], host: str) -> None:
    with closing(File(host_directory(host) / "file")) as file:
        assert file.map(0, MIB) == []
        os.ftruncate(file.fd, MIB)
        assert file.map() == []


@root
@hosts
def test_a_map_of_more_than_one_answer_is_whole(host_directory: Callable[[str], Path], host: str) -> None:
    with closing(File(host_directory(host) / "file", 2_000 * BLOCK)) as file:
        os.fsync(file.fd)
        for number in range(1, 2_000, 2):
            content.punch(file.fd, number * BLOCK, (number + 1) * BLOCK)
        assert _ranges(file.map()) == [(number * BLOCK, number * BLOCK + BLOCK) for number in range(0, 2_000, 2)]


@root
@hosts
def test_a_part_of_a_map_is_cut_to_what_was_asked(host_directory: Callable[[str], Path], host: str) -> None:
    with closing(File(host_directory(host) / "file", MIB)) as file:
        (whole,) = file.map()
        (part,) = file.map(3 * BLOCK, 5 * BLOCK)
    assert part == Extent(3 * BLOCK, 5 * BLOCK, whole.physical + 3 * BLOCK, Kind.PLAIN)


@root
def test_compressed_and_inline_extents_are_told_apart(host_directory: Callable[[str], Path]) -> None:
    directory = host_directory("btrfs")
    run.run(["btrfs", "property", "set", str(directory), "compression", "zstd"])
    with closing(File(directory / "inline", 100)) as inline, closing(File(directory / "compressed")) as compressed:
        os.pwrite(compressed.fd, bytes([1]) * 256 * KIB, 0)
        assert [extent.kind for extent in inline.map()] == [Kind.UNKNOWN]
        assert {extent.kind for extent in compressed.map()} == {Kind.ENCODED}
        (part,) = compressed.map(8 * KIB, 16 * KIB)
        assert part == Extent(8 * KIB, 16 * KIB, compressed.map()[0].physical, Kind.ENCODED)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0, Kind.PLAIN),
        (extents.FIEMAP_EXTENT_LAST | extents.FIEMAP_EXTENT_SHARED | extents.FIEMAP_EXTENT_MERGED, Kind.PLAIN),
        (extents.FIEMAP_EXTENT_ENCODED | extents.FIEMAP_EXTENT_SHARED, Kind.ENCODED),
        (extents.FIEMAP_EXTENT_ENCODED | extents.FIEMAP_EXTENT_DATA_ENCRYPTED, Kind.UNKNOWN),
        (extents.FIEMAP_EXTENT_ENCODED | extents.FIEMAP_EXTENT_UNWRITTEN, Kind.UNKNOWN),
        (extents.FIEMAP_EXTENT_UNKNOWN, Kind.UNKNOWN),
        (extents.FIEMAP_EXTENT_UNKNOWN | extents.FIEMAP_EXTENT_DELALLOC, Kind.UNKNOWN),
        (extents.FIEMAP_EXTENT_UNWRITTEN | extents.FIEMAP_EXTENT_DELALLOC, Kind.UNKNOWN),
        (extents.FIEMAP_EXTENT_DATA_INLINE | extents.FIEMAP_EXTENT_NOT_ALIGNED, Kind.UNKNOWN),
        (extents.FIEMAP_EXTENT_DATA_TAIL, Kind.UNKNOWN),
        (0x8000, Kind.UNKNOWN),
    ],
)
def test_flags_tell_the_kind(kind: Kind, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, [(0, 70, 10, flags)])
    assert list(extents.read(0, 0, 100)) == [Extent(0, 10, 70, kind)]


def test_reserved_space_is_a_hole_with_any_flag_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = extents.FIEMAP_EXTENT_UNWRITTEN | extents.FIEMAP_EXTENT_LAST | extents.FIEMAP_EXTENT_SHARED
    _answer(monkeypatch, [(0, 70, 10, flags)])
    assert list(extents.read(0, 0, 100)) == []


def _answer(monkeypatch: pytest.MonkeyPatch, *pages: Sequence[tuple[int, int, int, int]]) -> None:
    """Have the kernel answer with these pages of (logical, physical, length, flags), then with none."""
    pending = iter(pages)

    def call(_fd: int, number: int, request: extents._Request) -> int:
        assert number == extents.FS_IOC_FIEMAP == 0xC020660B
        assert request.fm_flags == extents.FIEMAP_FLAG_SYNC
        page = list(next(pending, []))
        request.fm_mapped_extents = len(page)
        for place, entry in enumerate(page):
            extents._ENTRY.pack_into(request.fm_extents, place * extents._ENTRY.size, *entry)
        return 0

    monkeypatch.setattr(ioctl, "call", call)


def test_an_answer_that_overlaps_what_was_told_before_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, [(0, 50, 10, 0), (5, 55, 10, 0)], [(0, 50, 30, 0)])
    assert list(extents.read(0, 2, 20)) == [Extent(2, 20, 52, Kind.PLAIN)]


def test_an_answer_that_does_not_go_on_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, [(0, 50, 10, 0)], [(0, 50, 10, 0)], [(20, 50, 10, 0)])
    assert list(extents.read(0, 0, 40)) == [Extent(0, 10, 50, Kind.PLAIN)]


def test_an_end_that_the_kernel_tells_too_early_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, [(0, 50, 10, extents.FIEMAP_EXTENT_LAST)], [(10, 90, 10, extents.FIEMAP_EXTENT_LAST)])
    assert list(extents.read(0, 0, 40)) == [Extent(0, 10, 50, Kind.PLAIN), Extent(10, 20, 90, Kind.PLAIN)]


@root
@pytest.mark.parametrize(("host", "has_map"), [("btrfs", True), ("xfs", True), ("ext4", True), ("tmpfs", False)])
def test_who_has_maps_is_found_out(scratch: Scratch, host: str, *, has_map: bool) -> None:
    directory = scratch.make(host, size_bytes=512 * MIB)
    assert extents.has_map(directory) is has_map
    assert set(os.listdir(directory)) <= {"lost+found"}


@root
@pytest.mark.parametrize(("host", "has_map"), [("btrfs", True), ("xfs", True), ("ext4", False)])
def test_a_full_disk_is_judged_by_its_type(
    host_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, host: str, *, has_map: bool
) -> None:
    directory = host_directory(host)
    monkeypatch.setattr(ioctl, "call", _fail_with(errno.ENOSPC))
    assert extents.has_map(directory) is has_map


def test_another_error_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ioctl, "call", _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        extents.has_map(tmp_path)


def _fail_with(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


# difference


def _check(file: File, base: File) -> Spans:
    """Compare by maps, and what they tell with the bytes."""
    spans = extents.difference(file.fd, base.fd)
    assert spans is not None
    here, there = file.content(), base.content()[: len(file.content())]
    there += bytes(len(here) - len(there))
    position = 0
    for span in spans:
        assert here[position : span.start] == there[position : span.start]
        if span.found is Found.HOLE:
            assert not any(here[span.start : span.end])
        position = span.end
    assert here[position:] == there[position:]
    return spans


_blocks = st.integers(0, 63)
_lengths = st.integers(1, 24)
ACTIONS: Final = st.lists(
    st.tuples(st.sampled_from(["write", "punch", "reserve", "share", "grow", "odd"]), _blocks, _blocks, _lengths),
    max_size=12,
)


def act(file: File, action: str, at: int, other: int, length: int) -> None:
    at, other, length = at * BLOCK, other * BLOCK, length * BLOCK
    match action:
        case "write":
            file.write(at, length)
        case "odd":
            file.write(at + 100, length)
        case "punch":
            file.punch(at, length)
        case "reserve":
            file.reserve(at, length)
        case "grow":
            os.ftruncate(file.fd, os.fstat(file.fd).st_size + length)
        case "share" if abs(at - other) >= length:
            os.ftruncate(file.fd, max(os.fstat(file.fd).st_size, other + length))
            file.share(other, at, length)


@root
@reflinking
@pytest.mark.parametrize("compression", ["none", "zstd"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=ACTIONS, after=ACTIONS)
def test_whatever_is_done_to_a_clone_is_found(
    host_directory: Callable[[str], Path],
    host: str,
    compression: str,
    before: list[Action],
    after: list[Action],
) -> None:
    directory = host_directory(host)
    if host == "btrfs":
        run.run(["btrfs", "property", "set", str(directory), "compression", compression])
    with closing(File(directory / "file")) as file:
        os.pwrite(file.fd, b"abcdefgh" * (32 * KIB), 0)
        for action in before:
            act(file, *action)
        with closing(file.clone()) as base:
            for action in after:
                act(file, *action)
            _check(file, base)


@root
@reflinking
def test_only_what_was_written_is_found(host_directory: Callable[[str], Path], host: str) -> None:
    with closing(File(host_directory(host) / "file", 8 * MIB)) as file, closing(file.clone()) as base:
        file.write(MIB, 2 * BLOCK)
        file.punch(2 * MIB, BLOCK)
        file.reserve(8 * MIB, MIB)
        spans = list(_check(file, base))
    assert spans == [
        Span(MIB, MIB + 2 * BLOCK, Found.DATA),
        Span(2 * MIB, 2 * MIB + BLOCK, Found.HOLE),
    ]


@root
@reflinking
def test_a_clone_that_is_longer_or_shorter_is_compared_as_far_as_it_goes(
    host_directory: Callable[[str], Path], host: str
) -> None:
    with closing(File(host_directory(host) / "file", MIB)) as file, closing(file.clone()) as base:
        file.write(MIB, 3 * BLOCK)
        assert list(_check(file, base)) == [Span(MIB, MIB + 3 * BLOCK, Found.DATA)]
        os.ftruncate(file.fd, MIB // 2 + 100)
        _check(file, base)


@root
@reflinking
def test_windows_make_no_difference(
    host_directory: Callable[[str], Path], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "_WINDOW_BYTES", 3 * BLOCK)
    with closing(File(host_directory(host) / "file", MIB)) as file, closing(file.clone()) as base:
        file.write(10 * BLOCK, 20 * BLOCK)
        os.ftruncate(file.fd, 2 * MIB)
        assert list(_check(file, base)) == [Span(10 * BLOCK, 30 * BLOCK, Found.DATA)]


@root
def test_a_compressed_extent_that_is_shown_from_another_part_is_doubted(host_directory: Callable[[str], Path]) -> None:
    directory = host_directory("btrfs")
    run.run(["btrfs", "property", "set", str(directory), "compression", "zstd"])
    with closing(File(directory / "file")) as file:
        os.pwrite(file.fd, b"a" * 64 * KIB + b"b" * 64 * KIB, 0)
        os.fsync(file.fd)
        with closing(file.clone()) as base:
            file.share(64 * KIB, 0, 64 * KIB)
            assert [extent.physical for extent in file.map()] == [base.map()[0].physical] * 2
            spans = _check(file, base)
    assert spans.count_bytes(Found.DOUBT) == 128 * KIB


@root
def test_a_base_that_was_moved_meanwhile_is_noticed(
    host_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = extents.compare
    with closing(File(host_directory("btrfs") / "file", MIB)) as file, closing(file.clone()) as base:

        def move(*maps: list[Extent]) -> Iterator[Span]:
            base.share(0, 512 * KIB, 64 * KIB)
            return compare(*maps)

        monkeypatch.setattr(extents, "compare", move)
        assert extents.difference(file.fd, base.fd) is None


@root
@reflinking
def test_a_clone_that_comes_or_goes_meanwhile_does_not_matter(
    host_directory: Callable[[str], Path], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = extents.compare
    with closing(File(host_directory(host) / "file", MIB)) as file, closing(file.clone()) as base:
        file.write(0, MIB)

        def clone(*maps: list[Extent]) -> Iterator[Span]:
            base.clone().close()
            return compare(*maps)

        monkeypatch.setattr(extents, "compare", clone)
        assert list(_check(file, base)) == [Span(0, MIB, Found.DATA)]


@root
def test_where_the_kernel_cuts_compressed_extents_does_not_matter(
    host_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = host_directory("btrfs")
    run.run(["btrfs", "property", "set", str(directory), "compression", "zstd"])
    compare = extents.compare
    with closing(File(directory / "file")) as file:
        os.pwrite(file.fd, b"a" * 128 * KIB + b"b" * 128 * KIB, 0)
        os.fsync(file.fd)
        file.punch(0, 124 * KIB)  # what is left of the first is as long as its place, and followed by the second
        with closing(file.clone()) as base:
            joined = base.map()
            assert [(extent.start, extent.end) for extent in joined] == [(124 * KIB, 256 * KIB)]

            def unshare(*maps: list[Extent]) -> Iterator[Span]:
                file.punch(128 * KIB, 128 * KIB)
                return compare(*maps)

            monkeypatch.setattr(extents, "compare", unshare)
            spans = extents.difference(file.fd, base.fd)
            assert base.map() != joined
    assert spans is not None
    assert list(spans) == [
        Span(124 * KIB, 128 * KIB, Found.DOUBT),
        Span(128 * KIB, 256 * KIB, Found.HOLE),
    ]


@root
def test_defragmentation_and_balance_do_not_hide_changes(scratch: Scratch) -> None:
    directory = scratch.make("btrfs")
    with closing(File(directory / "file")) as file:
        for number in range(0, 512, 2):
            file.write(number * BLOCK, BLOCK)
            os.fsync(file.fd)
        with closing(file.clone()) as base:
            file.write(100 * BLOCK, 7 * BLOCK)
            run.run(["btrfs", "filesystem", "defragment", "-f", str(base.path)])
            _check(file, base)
            run.run(["btrfs", "balance", "start", "--full-balance", str(directory)])
            file.punch(300 * BLOCK, 20 * BLOCK)
            _check(file, base)
