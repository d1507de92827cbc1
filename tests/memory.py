"""The in-memory driver with a power switch: the directory driver on tmpfs, cut off wherever a test wants.

It keeps the contract of `voldriverd.driver` with its two exceptions made real: until `sync`, a new
tree may be missing after power loss and a removed one may be back. `lose_power` chooses which.

Its own streams have the format that a test wants of it, by name only: they hold the tree's tar archive, an increment
only what is not in that of its base.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drivers import archive, binding
from drivers.directory import Directory
from voldriverd.driver import Adopted, Capability, Change, Key, Part, Stream, StreamFormat, TreeOptions, Usage, User
from voldriverd.errors import Exists, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import mount, tree

_SIZE = "user.test.size"
_PART_BYTES = 64 << 10
"""Small, so that a few files are many parts."""
_COPY, _DATA = 0, 1
_OPERATION = struct.Struct(">BQQ")
"""What an increment is made of: bytes of the base (where, how many), or bytes that follow (0, how many)."""


class PowerCut(BaseException):
    """The power went: nothing after this line runs, not even what catches Exception."""


class Switch:
    """Counts steps and cuts the power at the chosen one."""

    def __init__(self) -> None:
        self.cut_at: int | None = None
        self.steps: list[str] = []

    def step(self, what: str) -> None:
        if self.cut_at is not None and len(self.steps) >= self.cut_at:
            raise PowerCut(what)
        self.steps.append(what)


class Memory:
    """A pool on tmpfs. Cloning counts as INSTANT: the tests that use it write from one thread."""

    options = frozenset({"size", "uid", "gid", "mode"})

    def __init__(
        self, root: Path, mounts: Path, switch: Switch | None = None, *, own: StreamFormat = StreamFormat.BTRFS
    ) -> None:
        """Write streams of the format `own`; with TAR there are no increments."""
        self.capabilities = Capability.COW | Capability.INSTANT
        self.formats: tuple[StreamFormat, ...] = (own,)
        if own is not StreamFormat.TAR:
            self.capabilities |= Capability.DELTA
            self.formats = (own, StreamFormat.TAR)
        self._root = root
        self._inner = Directory(root, mounts)
        self._switch = switch or Switch()

    def open(self) -> None:
        self._inner.open()
        for name in ("created", "back"):
            (self._root / name).mkdir(0o700, exist_ok=True)

    def complete(self, options: TreeOptions) -> TreeOptions:
        self._inner.complete(_without_size(options))
        return options

    def create(self, key: Key, options: TreeOptions) -> None:
        self._switch.step(f"before create {key}")
        (self._root / "created" / key).touch()
        self._inner.create(key, _without_size(options))
        _put_size(self._tree(key), options.size_bytes)
        self._switch.step(f"after create {key}")

    def clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        self._switch.step(f"before clone {target}")
        self._inner.clone(source, target, read_only=read_only)
        self._switch.step(f"after clone {target}")

    def adopt(
        self, key: Key, source: Path, options: TreeOptions, *, read_only: bool, advance: Callable[[int], None]
    ) -> Adopted:
        self._switch.step(f"before adopt {key}")
        done = self._inner.adopt(key, source, _without_size(options), read_only=read_only, advance=advance)
        if done is not Adopted.NOT:
            _put_size(self._tree(key), options.size_bytes)
        self._switch.step(f"after adopt {key}")
        return done

    def remove(self, key: Key) -> None:
        self._switch.step(f"before remove {key}")
        if key in self.trees() and not self._inner.users(key):
            back = self._root / "back" / key
            if back.exists():
                tree.vanish(back)
            if not _is_mounted(self._inner, key):
                binding.remove_point(self._inner._mounts / key)
                self._tree(key).rename(back)
        self._inner.remove(key)
        self._switch.step(f"after remove {key}")

    def attach(self, key: Key, *, read_only: bool) -> Path:
        self._switch.step(f"before attach {key}")
        return self._inner.attach(key, read_only=read_only)

    def detach(self, key: Key) -> None:
        self._switch.step(f"before detach {key}")
        self._inner.detach(key)

    def resize(self, key: Key, size_bytes: int) -> None:
        if size_bytes < (self.usage(key).limit_bytes or 0):
            raise Invalid(f"cannot resize tree {key}: it cannot shrink", field="size")
        self._switch.step(f"before resize {key}")
        _put_size(self._tree(key), size_bytes)
        self._switch.step(f"after resize {key}")

    def trees(self) -> set[Key]:
        return self._inner.trees()

    def usage(self, key: Key) -> Usage:
        self._inner.usage(key)
        try:
            return Usage(None, None, int(os.getxattr(self._tree(key), _SIZE)))
        except OSError:
            return Usage(None, None, None)

    def users(self, key: Key) -> list[User]:
        return self._inner.users(key)

    def changes(self, base: Key, key: Key) -> Iterator[Change] | None:
        return self._inner.changes(base, key)

    def sync(self) -> None:
        self._switch.step("before sync")
        self._inner.sync()
        for back in (self._root / "back").iterdir():
            tree.vanish(back)
        for mark in (self._root / "created").iterdir():
            mark.unlink(missing_ok=True)
        self._switch.step("after sync")

    def reclaim(self) -> bool:
        return self._inner.reclaim()

    @contextmanager
    def send(
        self,
        key: Key,
        base: Key | None = None,
        *,
        wanted: StreamFormat | None = None,
        is_thorough: bool = False,  # noqa: ARG002 - it always compares everything
    ) -> Iterator[Stream]:
        form = wanted or self.formats[0]
        if form not in self.formats:
            raise Unsupported(f"cannot send tree {key} as {form}")
        if absent := {key, base or key} - self.trees():
            raise NotFound(f"cannot send tree {absent.pop()}: there is none")
        if form is StreamFormat.TAR:
            with self._inner.send(key, base) as stream:
                yield stream
            return
        self._switch.step(f"before send {key}")
        old = b"" if base is None else self._archive(base)
        content = hashlib.sha256(old).digest() + b"".join(_difference(old, self._archive(key)))
        yield Stream(
            format=form,
            version=1,
            is_incremental=base is not None,
            image_bytes=len(content) if form is StreamFormat.BLOCKS else None,
            expected_bytes=len(content),
            parts=self._parts(key, content, form),
        )
        self._switch.step(f"after send {key}")

    def receive(self, key: Key, chain: Iterator[Stream], options: TreeOptions) -> tuple[str, ...]:
        if key in self.trees():
            raise Exists(f"cannot receive tree {key}: it exists already")
        self._switch.step(f"before receive {key}")
        content: bytes | None = None
        for stream in chain:
            if stream.format not in {*self.formats, StreamFormat.TAR}:
                raise Unsupported(f"cannot receive tree {key}: it takes no {stream.format}")
            if stream.is_incremental != (content is not None):
                raise Unusable(f"cannot receive tree {key}: a chain is one whole stream and its increments")
            received = b"".join(part.data or bytes(part.length) for part in stream.parts)
            content = received if stream.format is StreamFormat.TAR else _applied(key, content or b"", received)
        if content is None:
            raise Unusable(f"cannot receive tree {key}: the chain is empty")
        mark = self._root / "created" / key
        mark.touch()  # what has not got its size yet is lost with the power
        try:
            notes = self._inner.receive(key, iter([_tar(content)]), _without_size(options))
            _put_size(self._tree(key), options.size_bytes)
        finally:
            mark.unlink()
        self._switch.step(f"after receive {key}")
        return notes

    def _archive(self, key: Key) -> bytes:
        with archive.write(self._tree(key) / "files") as parts:
            return b"".join(part.data or b"" for part in parts)

    def _parts(self, key: Key, content: bytes, form: StreamFormat) -> Iterator[Part]:
        for start in range(0, len(content), _PART_BYTES):
            self._switch.step(f"send {key} from {start}")
            data = content[start : start + _PART_BYTES]
            yield Part(data, len(data), start if form is StreamFormat.BLOCKS else None)

    def _tree(self, key: Key) -> Path:
        return self._root / "trees" / key


def lose_power(root: Path, *, keeps_cache: bool) -> None:
    """Leave on the disk what a power cut may leave: everything (`keeps_cache`), or only what is durable by contract."""
    for back in (root / "back").iterdir():
        if keeps_cache or (root / "trees" / back.name).exists():
            tree.vanish(back)
        else:
            back.rename(root / "trees" / back.name)
    for mark in (root / "created").iterdir():
        new = root / "trees" / mark.name
        if not keeps_cache and new.exists():
            tree.vanish(new)
        mark.unlink()


def _is_mounted(driver: Directory, key: Key) -> bool:
    return mount.at(driver._mounts / key) is not None


def _without_size(options: TreeOptions) -> TreeOptions:
    return TreeOptions(uid=options.uid, gid=options.gid, mode=options.mode)


def _put_size(path: Path, size_bytes: int | None) -> None:
    if size_bytes is not None:
        os.setxattr(path, _SIZE, str(size_bytes).encode())


def _tar(content: bytes) -> Stream:
    return Stream(
        format=StreamFormat.TAR,
        version=1,
        is_incremental=False,
        image_bytes=None,
        expected_bytes=None,
        parts=iter([Part(content, len(content))]),
    )


def _difference(old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield the operations that make the new archive of the old one, by blocks of 512 bytes."""
    places = {old[start : start + 512]: start for start in range(0, len(old), 512)}
    position = 0
    while position < len(new):
        end = position
        start = places.get(new[position : position + 512])
        if start is None:
            while end < len(new) and new[end : end + 512] not in places:
                end += 512
            yield _OPERATION.pack(_DATA, 0, end - position) + new[position:end]
        else:
            while end < len(new) and old[start + end - position : start + end - position + 512] == new[end : end + 512]:
                end += 512
            yield _OPERATION.pack(_COPY, start, end - position)
        position = end


def _applied(key: Key, old: bytes, increment: bytes) -> bytes:
    if increment[:32] != hashlib.sha256(old).digest():
        raise Unusable(f"cannot receive tree {key}: the increment is none on this base")
    found = []
    position = 32
    while position < len(increment):
        operation, start, length = _OPERATION.unpack_from(increment, position)
        position += _OPERATION.size
        if operation == _COPY:
            found.append(old[start : start + length])
        else:
            found.append(increment[position : position + length])
            position += length
    return b"".join(found)
