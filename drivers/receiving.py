"""Image files made from streams."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from drivers import archive, blocks
from drivers.images import CLEAR_TIMEOUT_S, Images, make, mib, rounded
from voldriverd.driver import Key, Stream, TreeOptions
from voldriverd.errors import Unusable
from voldriverd.kernel import fs, image, loop

_ROOM_NUMERATOR: Final = 5
_ROOM_DENOMINATOR: Final = 4
"""The size to be had by so much content: inode tables and a journal take up to a tenth, and there should be air."""


def from_blocks(
    images: Images, key: Key, first: Stream, rest: Iterator[Stream], options: TreeOptions
) -> tuple[str, ...]:
    """Make a tree from the blocks of a whole image and what changed since. Raises OSError and Unusable."""
    what = f"receive tree {key}"
    wanted_bytes = options.size_bytes or 0
    image_bytes = first.image_bytes or 0
    images.check_space(what, max(image_bytes, wanted_bytes) if options.thick else first.expected_bytes or 0)
    with images.part(key) as (fd, part):
        if options.thick:
            image.make_thick(fd, image_bytes)
        blocks.apply(first, fd, what)
        for stream in rest:
            if not stream.is_incremental:
                raise Unusable(f"cannot {what}: the chain has a second whole stream")
            blocks.apply(stream, fd, what)
        image_bytes = os.fstat(fd).st_size
        if options.thick:
            image.make_thick(fd, image_bytes)  # again: holes were punched
        notes = _check_mountable(images, what, part)
        if wanted_bytes > image_bytes:
            if image.type_of(part) != "ext4" or image.may_grow_mounted_ext4():
                images.grow_mounted(part, wanted_bytes, thick=options.thick)
            else:
                image.lengthen(part, wanted_bytes, thick=options.thick)
                image.grow_unmounted_ext4(part)
    return notes


def from_archive(
    images: Images, key: Key, stream: Stream, rest: Iterator[Stream], options: TreeOptions
) -> tuple[str, ...]:
    """Make a tree as `create` does and unpack an archive in it. Raises OSError and Unusable."""
    what = f"receive tree {key}"
    assert options.size_bytes is not None
    expected_bytes = stream.expected_bytes or 0
    needed_bytes = rounded(max(expected_bytes, options.size_bytes) * _ROOM_NUMERATOR // _ROOM_DENOMINATOR)
    too_small = f"its content does not fit in {mib(options.size_bytes)}: give it a size of {mib(needed_bytes)} or so"
    if expected_bytes > options.size_bytes:
        raise Unusable(f"cannot {what}: {too_small}")
    images.check_space(what, options.size_bytes if options.thick else expected_bytes)
    with images.part(key) as (fd, part):
        make(fd, part, options)
        try:
            with images.staged(part.name) as place:
                notes = archive.extract(stream.parts, place / image.DATA)
                fs.sync_file_system(place)  # what cannot be written shows here and not when it is unmounted
        except OSError as err:
            if err.errno != errno.ENOSPC or images.is_full():
                raise
            raise Unusable(f"cannot {what}: {too_small}") from err
        if next(rest, None) is not None:
            raise Unusable(f"cannot {what}: the chain goes on behind an archive, which is always whole")
    return notes


def _check_mountable(images: Images, what: str, part: Path) -> tuple[str, ...]:
    """Return what is wrong with the file system in an image nevertheless. Raises Unusable: it cannot be served."""
    with images.replica(part.name) as name:
        path = images.directory / name
        try:
            with images.staged(name) as place:
                is_served = stat.S_ISDIR((place / image.DATA).lstat().st_mode)
        except OSError as err:
            if err.errno not in image.DAMAGED | {errno.ENOENT}:
                raise
            raise Unusable(f"cannot {what}: its file system cannot be mounted: {err.strerror}") from err
        if not is_served:
            raise Unusable(f"cannot {what}: {image.DATA} in its file system is no directory")
        loop.wait_cleared(path, timeout_s=CLEAR_TIMEOUT_S)
        faults = image.faults(path)
    return () if faults is None else (f"the file system has errors: {faults}",)
