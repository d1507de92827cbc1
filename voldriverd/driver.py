"""The contract between the engine and whatever keeps trees: words only, no code.

A *tree* is one set of files under a *key*. Keys come from the store (`v3.1`, `s7`), match
`[a-z0-9.]+`, and are never user input. A driver knows nothing of volumes, snapshots or revert.
A driver is made with its pool's root directory and the directory of mount points
(`mounts`, outside the pool); both exist. Tests in `tests/contract` follow this text line by line.

A *stream* is a tree written down for a backup, whole or as what changed since another tree; a *chain* is a whole one
and the changes that follow it, each since the one before.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from pathlib import Path
from typing import Final, NewType, Protocol

Key = NewType("Key", str)

PART_MAX: Final = 4 << 20
"""The most bytes of data in one part of a stream: what is read, compressed and stored at once."""
RECLAIM_S: Final = 20.0
"""How long `reclaim` may take: a Docker call that waits for it is given up after 60 s."""


class Capability(Flag):
    """Promises that the contract suite checks."""

    NONE = 0
    SIZE = auto()
    """Writing past a tree's size fails with ENOSPC or EDQUOT."""
    COW = auto()
    """A clone takes the same time for any amount of data."""
    INSTANT = auto()
    """The clone of a tree that is being written is what a power cut would have left: all that was synced before.

    What was written and not synced is there too as a rule; a snapshot of btrfs missed the last of it in about one of
    700 (Linux 6.18, a writer beside it that never paused).
    """
    DELTA = auto()
    """`send` with a base reads only what changed since."""


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """What a new tree should be like; None means the driver's default."""

    size_bytes: int | None = None
    thick: bool = False
    fs: str | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    nocow: bool = False
    compression: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Space of one tree in bytes; None means that it cannot be told in constant time."""

    used_bytes: int | None
    exclusive_bytes: int | None
    limit_bytes: int | None


@dataclass(frozen=True, slots=True)
class User:
    """One process (of a mount namespace) in which a tree is mounted, and where."""

    pid: int
    process: str
    mount_point: str


class ChangeKind(StrEnum):
    """How a path differs between two trees."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path, relative to the tree's root, that differs."""

    path: str
    kind: ChangeKind


class StreamFormat(StrEnum):
    """How a tree is written down."""

    BTRFS = "btrfs"
    """What `btrfs send` writes and `btrfs receive` reads."""
    BLOCKS = "blocks"
    """The ranges of an image that hold data, or that changed, in ascending order."""
    TAR = "tar"
    """What GNU tar reads: pax headers with extended attributes, ACLs, hard links, holes and numeric owners."""


@dataclass(frozen=True, slots=True)
class Part:
    """The next piece of a stream, of at most PART_MAX bytes."""

    data: bytes | None
    """None: a range of an image that holds nothing (any more) and reads as zeros; only in BLOCKS."""
    length: int
    """In bytes; of `data` if there is any."""
    offset: int | None = None
    """Where in the image, in bytes; None if the format is not BLOCKS."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A tree, or what changed in it. Its parts can be read once, and only inside the block that gave the stream."""

    format: StreamFormat
    version: int
    """Of the format: 1 or 2 of BTRFS; else 1."""
    is_incremental: bool
    """Whether it is only what changed since a base."""
    image_bytes: int | None
    """The size of the image that BLOCKS are of; else None."""
    expected_bytes: int | None
    """How many bytes of data will come, roughly, for who shows progress; None if that cannot be told."""
    parts: Iterator[Part]
    notes: tuple[str, ...] = ()
    """What the stream could not hold of the tree, or why it is no increment: for people."""


class Adopted(StrEnum):
    """What came of the wish to make a tree of a directory without reading what is in it."""

    NOT = "not"
    """Nothing was made: the directory is to be written down (TAR) and received."""
    COPY = "copy"
    """Every file was copied, by reflink where the file system has that; its content may have changed meanwhile."""
    INSTANT = "instant"
    """The tree is what the directory was at one instant."""


class Driver(Protocol):
    """Keeps the trees of one pool.

    1. *Whole or absent*: after a crash at any instant a key has all its content or is not there.
    2. *The disk is the only state*: a new instance on the same root sees the same trees and attachments.
    3. *Trees are independent*: no call on one key changes another; a clone outlives its source.
    4. *remove, attach, detach may be repeated.*
    5. Named errors are raised before anything has changed; OSError passes through, and then the
       target key is absent.
    6. Methods block; calls for different keys may run in parallel; the caller never makes two
       calls for one key at once (`trees`, `usage` and `users` excepted).
    7. *Who watches is told, and may end it*: what a driver compares, walks through, copies or checks tells
       `kernel.watch`, every second at least; what the watcher raises passes through as OSError does. What the kernel
       or a tool that writes does in one step, and what cleans up, comes to its end.

    A call returns only when its effect survives power loss, with two exceptions, both settled by
    `sync`: a new, empty tree may be missing after power loss, and a removed tree may be back.
    """

    capabilities: Capability
    options: frozenset[str]
    """The names of the TreeOptions fields (`size_bytes` is `size` here) that this driver honours."""
    formats: tuple[StreamFormat, ...]
    """The formats that `send` can write, its own first; `receive` takes those and TAR."""

    def open(self) -> None:
        """Check the pool and sweep what a crash left half-made; repeatable.

        Raises Unusable: the pool is on the wrong file system or a needed tool is missing.
        """
        ...

    def complete(self, options: TreeOptions) -> TreeOptions:
        """Fill in this driver's defaults (size, fs) and check every value; touches nothing.

        Raises Invalid (a bad value, naming the minimum or the choices) or Unsupported.
        """
        ...

    def create(self, key: Key, options: TreeOptions) -> None:
        """Make an empty tree from completed options. Raises Exists."""
        ...

    def clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        """Copy a tree; the source may be attached if the driver is INSTANT. Raises NotFound, Exists.

        Without INSTANT the caller makes sure that nobody writes to the source.
        """
        ...

    def remove(self, key: Key) -> None:
        """Destroy a tree, whatever a container's root put into it. Repeatable. Raises InUse.

        InUse: it is mounted somewhere, in any mount namespace; nothing has changed then.
        """
        ...

    def attach(self, key: Key, *, read_only: bool) -> Path:
        """Mount the tree at `mounts/<key>` and return that path. Repeatable. Raises NotFound.

        If the right tree is already mounted there, only the path is returned; if anything else
        is, it is repaired.
        """
        ...

    def detach(self, key: Key) -> None:
        """Unmount `mounts/<key>`. Repeatable. Raises InUse if the mount is busy.

        What programs did not fsync is as safe as on any file system: a driver flushes no more than umount(2) does.
        """
        ...

    def adopt(
        self, key: Key, source: Path, options: TreeOptions, *, read_only: bool, advance: Callable[[int], None]
    ) -> Adopted:
        """Make a tree of a directory outside of the pool where that costs less than to read and write it all.

        `options` are completed ones; owner, mode and all else come from the directory, which stays as it is. `advance`
        is called with the bytes done since; what it raises passes through, and the key is absent then. Raises Exists,
        and OSError (ESTALE: the directory changed while it was copied; EBUSY: something is mounted in it).
        """
        ...

    def resize(self, key: Key, size_bytes: int) -> None:
        """Set the size of a tree, attached or not. Repeatable. Raises NotFound, Invalid, Unsupported.

        Invalid: smaller than this driver can make it. After a crash: the old size or the new one,
        and a second call with the same size ends the work.
        """
        ...

    def trees(self) -> set[Key]:
        """Return every key in the pool; reads names only, opens no tree."""
        ...

    def usage(self, key: Key) -> Usage:
        """Return the space of a tree in constant time. Raises NotFound."""
        ...

    def users(self, key: Key) -> list[User]:
        """Return who has the tree mounted in any mount namespace, our own `mounts/<key>` excepted.

        An absent tree has no users.
        """
        ...

    def changes(self, base: Key, key: Key) -> Iterator[Change] | None:
        """Return the paths that differ between two read-only trees of one origin, sorted by path.

        None: this driver has no better way than walking both trees.
        """
        ...

    def sync(self) -> None:
        """Return when every creation and removal so far in this pool survives power loss."""
        ...

    def reclaim(self) -> bool:
        """Return when the space of all trees removed so far is free; False if that takes more than RECLAIM_S."""
        ...

    def send(
        self, key: Key, base: Key | None = None, *, wanted: StreamFormat | None = None, is_thorough: bool = False
    ) -> AbstractContextManager[Stream]:
        """Write down a read-only tree for the block: what changed since `base` (DELTA), or all of it.

        `wanted` None means the driver's own format; any driver can write TAR. What the driver's own format cannot hold
        (nested subvolumes in a btrfs stream) it writes as TAR, whole, and says so in `notes`; if it meets such a thing
        only in the middle of what changed, the parts raise Unsupported, and without a base it can be written.
        `is_thorough`: compare every byte with the base instead of trusting the file system's account of what changed.
        The same tree and base give the same bytes again, so that what broke off can be taken up. An early end of the
        block stops the work and leaves nothing behind. Raises NotFound (either tree), Unsupported (no DELTA and a
        base; a format).
        """
        ...

    def receive(self, key: Key, chain: Iterator[Stream], options: TreeOptions) -> tuple[str, ...]:
        """Make a writable tree from a chain, which is read lazily, one stream after the other.

        `options` are completed ones: owner and mode of the root come from the stream, an image in BLOCKS keeps its own
        size and file system, and a size that the tree turns out larger than becomes the tree's. Returns what the
        driver could not keep of the streams, for people. What an iterator of parts raises passes through; then, and
        after a crash, the key is absent. Raises Exists, Unsupported (a format that it does not take), Unusable (the
        stream is not what its format says, or does not fit).
        """
        ...
