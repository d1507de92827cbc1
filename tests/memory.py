"""The in-memory driver with a power switch: the directory driver on tmpfs, cut off wherever a test wants.

It keeps the contract of `voldriverd.driver` with its two exceptions made real: until `sync`, a new
tree may be missing after power loss and a removed one may be back. `lose_power` chooses which.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from drivers import binding
from drivers.directory import Directory
from voldriverd.driver import Capability, Change, Key, TreeOptions, Usage, User
from voldriverd.errors import Invalid
from voldriverd.kernel import mount, tree

_SIZE = "user.test.size"


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

    capabilities = Capability.COW | Capability.INSTANT
    options = frozenset({"size", "uid", "gid", "mode"})

    def __init__(self, root: Path, mounts: Path, switch: Switch | None = None) -> None:
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
            mark.unlink()
        self._switch.step("after sync")

    def reclaim(self) -> bool:
        return self._inner.reclaim()

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
