"""Images as streams of blocks: written down whole or as what changed since another one, and made again.

No part crosses a multiple of PART_MAX in the image, so that the same data is cut alike wherever else has changed.
What is written down is a file at rest, by its bytes: the file system inside is not mounted for it.
"""

import heapq
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from voldriverd.driver import PART_MAX, Part, Stream, StreamFormat
from voldriverd.errors import Unusable
from voldriverd.kernel import content, extents, watch
from voldriverd.kernel.extents import Found, Span, Spans

IMAGE_MAX_BYTES: Final = 15 << 40
"""A file on ext4 ends one block below 16 TiB."""
_BLOCK_BYTES: Final = 4096
"""How finely the bytes of two images are compared; file systems inside have such blocks."""
_FLUSH_BYTES: Final = 64 << 20
"""How much is written before the disk has to have it: little enough that others' fsyncs do not wait long behind it."""
_MOVED: Final = "the pool moved data of the base meanwhile: all bytes were compared instead"


@contextmanager
def whole(image: Path) -> Iterator[Stream]:
    """Yield an image as what in it is no hole. Raises OSError, as the parts do."""
    with content.reading(image, PART_MAX) as reader:
        spans = Spans(Span(start, end, Found.DATA) for start, end in content.segments(reader.fd, reader.size_bytes))
        with _streamed(reader, spans, is_incremental=False, notes=()) as stream:
            yield stream


@contextmanager
def changed(image: Path, base: Path, *, is_thorough: bool) -> Iterator[Stream]:
    """Yield an image as its differences from another one. Raises OSError, as the parts do.

    They are known before the first part: by the maps of both; where these cannot tell, and everywhere if
    `is_thorough` or if the base was moved meanwhile, by what both hold. `watch` is told of each step and piece.
    """
    with content.reading(image, PART_MAX) as reader, content.reading(base, PART_MAX) as base_reader:
        watch.prepare("looks for what changed")
        mapped = extents.difference(reader.fd, base_reader.fd)
        notes: tuple[str, ...] = ()
        if mapped is not None and not is_thorough:
            spans = Spans(_settled(reader, base_reader, mapped))
        else:
            ranges = Spans(Span(start, end, Found.DATA) for start, end in _joined(reader, base_reader))
            watch.prepare("compares all bytes with its base", ranges.count_bytes(Found.DATA))
            spans = Spans(_compared(reader, base_reader, ((span.start, span.end) for span in ranges)))
            notes = _remarks(spans, mapped)
        with _streamed(reader, spans, is_incremental=True, notes=notes) as stream:
            yield stream


def apply(stream: Stream, fd: int, what: str) -> None:
    """Write a stream into an image that holds what the stream builds on. Raises OSError and Unusable.

    `what` is "VERB THING NAME". Unusable: the stream is none of blocks, or its ranges are not in order.
    """
    if stream.format is not StreamFormat.BLOCKS:
        raise Unusable(f"cannot {what}: a stream of format {stream.format} stands where blocks were expected")
    image_bytes = stream.image_bytes
    if image_bytes is None or not 0 <= image_bytes <= IMAGE_MAX_BYTES:
        raise Unusable(f"cannot {what}: its stream is not of an image of {IMAGE_MAX_BYTES:,} bytes at most")
    os.ftruncate(fd, image_bytes)
    position = unflushed = 0
    for part in stream.parts:
        start = part.offset
        if start is None or part.length < 0 or (part.data is not None and len(part.data) != part.length):
            raise Unusable(f"cannot {what}: its stream is damaged behind byte {position:,} of the image")
        if start < position or start + part.length > image_bytes:
            cause = f"a range of {part.length:,} bytes at {start:,}, behind one that ended at {position:,}"
            raise Unusable(f"cannot {what}: its stream has {cause}, in an image of {image_bytes:,}")
        _put(fd, part, start)
        position = start + part.length
        unflushed += 0 if part.data is None else part.length
        if unflushed >= _FLUSH_BYTES:
            _flush(fd)
            unflushed = 0


@contextmanager
def _streamed(
    reader: content.Reader, spans: Spans, *, is_incremental: bool, notes: tuple[str, ...]
) -> Iterator[Stream]:
    parts = _parts(reader, spans)
    try:
        yield Stream(
            format=StreamFormat.BLOCKS,
            version=1,
            is_incremental=is_incremental,
            image_bytes=reader.size_bytes,
            expected_bytes=spans.count_bytes(Found.DATA),
            parts=parts,
            notes=notes,
        )
    finally:
        parts.close()


def _parts(reader: content.Reader, spans: Iterable[Span]) -> Generator[Part, None, None]:
    for span in spans:
        for start, end in _cut(span.start, span.end):
            if span.found is Found.HOLE:
                yield Part(None, end - start, start)
                continue
            data = reader.read(start, end)
            is_zero = _is_zero(data)
            watch.advance(len(data) if is_zero else 0)  # of data hears whoever takes it
            yield Part(None if is_zero else data, end - start, start)


def _settled(reader: content.Reader, base: content.Reader, spans: Iterable[Span]) -> Iterator[Span]:
    """Yield spans with those in doubt compared by their bytes."""
    for span in spans:
        if span.found is Found.DOUBT:
            yield from _compared(reader, base, [(span.start, span.end)])
        else:
            yield span


def _compared(reader: content.Reader, base: content.Reader, ranges: Iterable[tuple[int, int]]) -> Iterator[Span]:
    """Yield the blocks of ranges whose bytes differ."""
    for start, end in ranges:
        for first, last in _cut(start, end):
            watch.advance(last - first)
            data, other = reader.read(first, last), base.read(first, last)
            if data == other:
                continue
            for at in range(0, last - first, _BLOCK_BYTES):
                block = data[at : at + _BLOCK_BYTES]
                if block != other[at : at + _BLOCK_BYTES]:
                    found = Found.HOLE if _is_zero(block) else Found.DATA
                    yield Span(first + at, first + at + len(block), found)


def _joined(reader: content.Reader, base: content.Reader) -> Iterator[tuple[int, int]]:
    """Yield the ranges of an image that are no hole in it or in its base."""
    base_bytes = min(reader.size_bytes, base.size_bytes)
    position = 0
    for start, end in heapq.merge(
        content.segments(reader.fd, reader.size_bytes), content.segments(base.fd, base_bytes)
    ):
        if end > position:
            yield max(start, position), end
            position = end


def _remarks(spans: Spans, mapped: Spans | None) -> tuple[str, ...]:
    if mapped is None:
        return (_MOVED,)
    missing = extents.missing_bytes(spans, mapped)
    if not missing:
        return ()
    cause = f"the pool's file system did not tell of changes in {missing:,} bytes, which a comparison of all found"
    return (f"{cause}: earlier increments may lack such changes too",)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(end, start - start % PART_MAX + PART_MAX)
        yield start, stop
        start = stop


def _is_zero(data: bytes) -> bool:
    return data == bytes(len(data))


def _put(fd: int, part: Part, start: int) -> None:
    if part.data is None:
        if part.length:
            content.punch(fd, start, start + part.length)
        return
    view = memoryview(part.data)
    while view:
        count = os.pwrite(fd, view, start)
        view, start = view[count:], start + count


def _flush(fd: int) -> None:
    """Have the disk take what was written, and the cache forget it."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
