"""Trees of btrfs as streams and back: what the btrfs driver does for backups.

    <pool>/staging/<key>        a subvolume for one restore, mounted on itself meanwhile
    <pool>/staging/<key>/<n>    link n of its chain, read-only; it goes as soon as the next one is whole

A btrfs stream holds no nested subvolumes and no paths of more than 4,080 bytes: trees with these go as tar. It does
not hold inode flags (immutable, append-only, no copy on write), of which a note tells, birth times, or space that is
reserved. Before a whole one is sent it is surveyed, so that its length is known and that it can be sent: that reads no
data and takes a quarter of the time of a stream of small files (20,000 of 32 KB: 0.76 of 2.7 s).
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drivers import archive
from voldriverd.driver import PART_MAX, Key, Part, Stream, StreamFormat
from voldriverd.errors import Unsupported, Unusable
from voldriverd.kernel import btrfs, copying, inodes, mount, nested, qgroup, readahead, receive, run, send

FORMATS: Final[tuple[StreamFormat, ...]] = (StreamFormat.BTRFS, StreamFormat.TAR)

_NEWEST_VERSION: Final = 2
_COMPRESSION: Final = "btrfs.compression"
_NESTED_NOTE: Final = "subvolumes are nested in it, which a btrfs stream cannot hold; in tar they are directories"
_LONG_NOTE: Final = "it has paths that are too long for a btrfs stream"
_BASE_NOTE: Final = "it is whole because subvolumes are nested in its base, which was sent as tar"


@dataclass(frozen=True, slots=True)
class Built:
    """What a chain was made into, in a staging place."""

    name: str
    """Of the last link's subvolume; it is read-only if it came as a btrfs stream."""
    charges_bytes: tuple[int, ...]
    """What the quota group of each link counts; without quotas zeros."""
    is_from_btrfs: bool
    attributes: dict[bytes, bytes]
    """Extended attributes that the tree's root directory should have and this one has not."""
    notes: tuple[str, ...]


@contextmanager
def sent(
    place: Path, fd: int, base_fd: int | None, *, wanted: StreamFormat | None, used_bytes: Callable[[], int | None]
) -> Iterator[Stream]:
    """Yield a read-only subvolume as a stream, in tar where btrfs cannot hold it.

    Raises Unsupported (BTRFS is wanted and cannot hold it) and OSError, as the parts do.
    """
    if wanted is StreamFormat.TAR:
        with archive.stream(place) as stream:
            yield stream
        return
    obstacle = _NESTED_NOTE if _has_nested(fd) else ""
    if base_fd is not None and not obstacle and not _has_nested(base_fd):
        with _changed(place, fd, base_fd) as stream:
            yield stream
        return
    surveyed_bytes, obstacle = (0, obstacle) if obstacle else _survey(fd)
    if not obstacle:
        count = inodes.count_flagged(fd, inodes.UNSENT)
        used = used_bytes()
        with _sending(fd, parent_id=0, since=0) as (version, parts):
            yield Stream(
                format=StreamFormat.BTRFS,
                version=version,
                is_incremental=False,
                image_bytes=None,
                expected_bytes=min(surveyed_bytes, used) if used else surveyed_bytes,
                parts=parts,
                notes=(() if base_fd is None else (_BASE_NOTE,)) + _flags_note(count),
            )
        return
    if wanted is StreamFormat.BTRFS:
        raise _unfit(place, obstacle)
    with archive.stream(place, notes=(obstacle,)) as stream:
        yield stream


@contextmanager
def _changed(place: Path, fd: int, base_fd: int) -> Iterator[Stream]:
    """Yield what changed since a base; its parts raise Unsupported when they meet what the stream cannot hold.

    There is no survey, which would take half of the time. What changed is counted while the kernel writes, before the
    first part is asked for: both wait for the same disk, and one after the other otherwise (50 files of 20,000 changed,
    nothing cached: 69 ms for the whole backup, and 84).
    """
    since = receive.changed_in(base_fd) + 1
    with _sending(fd, parent_id=btrfs.subvolume_id(base_fd), since=since) as (version, parts):
        count, data_bytes = inodes.changes(fd, inodes.UNSENT, since=since)
        yield Stream(
            format=StreamFormat.BTRFS,
            version=version,
            is_incremental=True,
            image_bytes=None,
            expected_bytes=data_bytes,
            parts=_fitting(place, parts),
            notes=_flags_note(count),
        )


def _fitting(place: Path, parts: Iterator[Part]) -> Iterator[Part]:
    try:
        yield from parts
    except OSError as err:
        if err.errno != errno.ENAMETOOLONG:
            raise
        raise _unfit(place, _LONG_NOTE) from err


@contextmanager
def _sending(fd: int, *, parent_id: int, since: int) -> Iterator[tuple[int, Iterator[Part]]]:
    """Yield the version of the stream that the kernel writes meanwhile, and its parts."""
    version = _version()
    flags = send.BTRFS_SEND_FLAG_COMPRESSED if version > 1 else 0
    with (
        closing(readahead.Ahead(fd, since=since)) as ahead,
        send.sending(fd, parent_id=parent_id, flags=flags, version=version) as reader,
    ):
        yield version, _parts(reader, ahead)


@contextmanager
def staged(staging: Path, key: Key) -> Iterator[Path]:
    """Make a staging place for the block. Raises OSError."""
    with btrfs.opened(staging) as fd:
        _destroy(staging, fd, key)
        btrfs.create(fd, key)
        try:
            _refuse_inheritance(staging / key)
            yield staging / key
        finally:
            with suppress(OSError):  # whatever came of the block stands; the next `open` sweeps
                _destroy(staging, fd, key)


def sweep(staging: Path) -> None:
    """Destroy the staging places that a crash left, when what worked there has ended. Raises Unusable, OSError."""
    with btrfs.opened(staging) as fd:
        for name in os.listdir(fd):
            try:
                _destroy(staging, fd, name)
            except OSError as err:
                if err.errno != errno.EBUSY:
                    raise
                raise Unusable(f"cannot sweep {staging / name}: what was broken off still works there") from err


def build(place: Path, chain: Iterable[Stream], file_system_id: str, *, dress: Callable[[int], None]) -> Built:
    """Make the subvolumes of a chain in a staging place, one after the other; the last one stays, on the disk.

    `dress` is called with the new subvolume of an archive. Raises Unsupported (a format), Unusable, OSError, and what
    the parts raise.
    """
    charges: list[int] = []
    parent: receive.Received | None = None
    notes: tuple[str, ...] = ()
    number = -1
    with btrfs.opened(place) as fd:
        for number, stream in enumerate(chain):
            if stream.format is StreamFormat.BTRFS:
                parent = _receive(place, str(number), stream, parent)
            elif stream.format is StreamFormat.TAR:
                if number:
                    raise _unusable(place, "an archive builds on nothing")
                notes = _unpack(place, fd, stream, dress)
            else:
                choices = " and ".join(FORMATS)
                raise Unsupported(f"cannot receive tree {place.name} from {stream.format}: btrfs takes {choices}")
            if number:
                charges.append(_charge(fd, str(number - 1), file_system_id))
                btrfs.destroy(fd, str(number - 1))
        if number < 0:
            raise _unusable(place, "there is no stream")
        charges.append(_settled_charge(fd, str(number), file_system_id))
    attributes = {} if parent is None else parent.kept_back
    return Built(str(number), tuple(charges), parent is not None, attributes, notes)


def copied(
    place: Path, source: Path, file_system_id: str, *, dress: Callable[[int], None], advance: Callable[[int], None]
) -> Built:
    """Copy a directory of this file system by reflink into a subvolume of a staging place; else as `build`.

    Its root must not be immutable. Raises OSError.
    """
    with btrfs.opened(place) as fd:
        btrfs.create(fd, "0")
        with btrfs.opened("0", directory_fd=fd) as root_fd:
            dress(root_fd)
        root = place / "0"
        copying.fill(source, root, links=root / f".{uuid.uuid4()}", live=False, advance=advance)
        status = source.stat()
        os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))
        charge_bytes = _settled_charge(fd, "0", file_system_id)
    return Built("0", (charge_bytes,), is_from_btrfs=False, attributes={}, notes=())


def _refuse_inheritance(place: Path) -> None:
    """Take away the compression that subvolumes inherit from the one around them: it is none of a backup's business."""
    if _COMPRESSION in os.listxattr(place):
        os.removexattr(place, _COMPRESSION)


def _has_nested(fd: int) -> bool:
    return bool(btrfs.children(fd, btrfs.subvolume_id(fd)))


def _survey(fd: int) -> tuple[int, str]:
    """Return how long a whole btrfs stream will be, and why there can be none."""
    try:
        return send.survey(fd, parent_id=0), ""
    except OSError as err:
        if err.errno != errno.ENAMETOOLONG:
            raise
        return 0, _LONG_NOTE


def _flags_note(count: int) -> tuple[str, ...]:
    """Tell of so many inodes with flags."""
    if not count:
        return ()
    return (f"a btrfs stream cannot hold inode flags (as immutable, no copy on write): {count} files have some",)


def _version() -> int:
    """Return the version of streams that this kernel writes and the tool that is installed here reads; 1 without it."""
    return min(_NEWEST_VERSION, send.newest_version(), max(1, receive.newest_version()))


def _parts(reader: send.Reader, ahead: readahead.Ahead) -> Iterator[Part]:
    position = send.Position()
    while data := reader.read(PART_MAX):
        position.advance(data)
        if len(data) == PART_MAX:
            ahead.advance(position.inode)
        yield Part(data, len(data))


class _Pieces:
    """The data of parts, and what they raised."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self._parts = parts
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for part in self._parts:
                assert part.data is not None
                yield part.data
        except BaseException as err:
            self.failure = err
            raise


def _receive(place: Path, name: str, stream: Stream, parent: receive.Received | None) -> receive.Received:
    known = receive.newest_version()
    if stream.version > known:
        cause = f"its stream has version {stream.version}: {receive.PACKAGE} 6.2 or later is needed"
        raise _unusable(place, cause if known else f"{receive.TOOL} is not installed (package {receive.PACKAGE})")
    pieces = _Pieces(stream.parts)
    try:
        with receive.confined(place):
            return receive.receive(place, name, pieces, parent)
    except (receive.Refused, run.ToolError) as err:
        if err is pieces.failure:
            raise
        raise _unusable(place, str(err.strerror).rpartition("ERROR: ")[2]) from err


def _unpack(place: Path, fd: int, stream: Stream, dress: Callable[[int], None]) -> tuple[str, ...]:
    btrfs.create(fd, "0")
    with btrfs.opened("0", directory_fd=fd) as root_fd:
        dress(root_fd)
    return archive.extract(stream.parts, place / "0")


def _charge(fd: int, name: str, file_system_id: str) -> int:
    """Return what the quota group of a subvolume counts as of the last commit."""
    with btrfs.opened(name, directory_fd=fd) as link_fd:
        group = qgroup.group(file_system_id, btrfs.subvolume_id(link_fd))
    return 0 if group is None else group.referenced_bytes


def _settled_charge(fd: int, name: str, file_system_id: str) -> int:
    """Return it with all that was dirty: a snapshot writes that out and commits."""
    if qgroup.mode(file_system_id) is qgroup.Mode.OFF:
        return 0
    with btrfs.opened(name, directory_fd=fd) as link_fd:
        btrfs.snapshot(link_fd, fd, "settled", read_only=True)
    btrfs.destroy(fd, "settled")
    return _charge(fd, name, file_system_id)


def _destroy(staging: Path, fd: int, name: str) -> None:
    """Destroy a staging place if it is there. Raises OSError (EBUSY: a process still works there)."""
    if not (staging / name).exists():
        return
    while mount.at(staging / name) is not None:
        receive.release(staging / name)
    nested.destroy(fd, name)


def _unfit(place: Path, obstacle: str) -> Unsupported:
    return Unsupported(f"cannot send tree {place.name} as btrfs: {obstacle}")


def _unusable(place: Path, cause: str) -> Unusable:
    return Unusable(f"cannot receive tree {place.name}: {cause}")
