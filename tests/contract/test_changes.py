"""changes: what a walk over both trees finds, if the driver knows it better."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.contract.conftest import Pool
from tests.contract.pools import knowing_changes, not_knowing_changes
from voldriverd.driver import Change, ChangeKind, Key

pytestmark = pytest.mark.root


def _populate(root: Path) -> None:
    (root / "kept").write_bytes(b"kept")
    (root / "file").write_bytes(b"old")
    (root / "link").symlink_to("file")
    for name in ("d/e/f", "other", "empty"):
        (root / name).mkdir(parents=True)
    for name in ("d/one", "d/e/two", "d/e/f/three", "other/four"):
        (root / name).write_bytes(name.encode())


def _edit(root: Path, *, name: str) -> None:
    (root / name).write_bytes(b"new content")


def _same_size_and_time(root: Path) -> None:
    status = (root / "file").stat()
    (root / "file").write_bytes(b"new")
    os.utime(root / "file", ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(root: Path) -> None:
    (root / "file.new").write_bytes(b"new content")
    (root / "file.new").rename(root / "file")


def _swap(root: Path) -> None:
    (root / "d").rename(root / "x")
    (root / "other").rename(root / "d")
    (root / "x").rename(root / "other")


def _move_into_removed(root: Path) -> None:
    (root / "d" / "e" / "f").rename(root / "f")
    (root / "d" / "e" / "two").unlink()
    (root / "d" / "e").rmdir()
    (root / "f").rename(root / "d" / "e")


def _directory_to_link(root: Path) -> None:
    (root / "d").rename(root / "elsewhere")
    (root / "d").symlink_to("elsewhere")


def _odd_names(root: Path) -> None:
    (root / "new\nline").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"")
    (root / "o257-7-0").write_bytes(b"")
    (root / "d" / "one").rename(root / "d" / "o258-8-0")


def _xattr(root: Path) -> None:
    os.setxattr(root / "file", "user.x", b"1")
    os.setxattr(root / "d", "user.x", b"1")


def _empty_the_tree(root: Path) -> None:
    for directory, names, files in os.walk(root, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in names:
            path = os.path.join(directory, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)


Edit = Callable[[Path], object]

_EDITS: dict[str, tuple[Edit, ...]] = {
    "nothing": (),
    "content": (lambda root: _edit(root, name="d/e/two"),),
    "added": (lambda root: _edit(root, name="d/e/new"),),
    "removed": (lambda root: (root / "d" / "e" / "two").unlink(),),
    "renamed": (lambda root: (root / "file").rename(root / "d" / "file"),),
    "renamed directory": (lambda root: (root / "d").rename(root / "other" / "d"),),
    "renamed and edited": (lambda root: (root / "d").rename(root / "x"), lambda root: _edit(root, name="x/e/two")),
    "renamed, name used again": (lambda root: (root / "d").rename(root / "x"), lambda root: (root / "d").mkdir()),
    "replaced": (_replace,),
    "same size and time": (_same_size_and_time,),
    "swapped directories": (_swap,),
    "moved into the place of its parent": (_move_into_removed,),
    "directory to link": (_directory_to_link,),
    "link retargeted": (lambda root: (root / "link").unlink(), lambda root: (root / "link").symlink_to("kept")),
    "mode": (lambda root: (root / "file").chmod(0o600),),
    "mode of a directory": (lambda root: (root / "d").chmod(0o700),),
    "owner": (lambda root: os.chown(root / "file", 5, 6),),
    "time": (lambda root: os.utime(root / "file", (1, 1)),),
    "time of a directory": (lambda root: os.utime(root / "d", (1, 1)),),
    "time of last reading": (lambda root: os.utime(root / "kept", ns=(1, (root / "kept").stat().st_mtime_ns)),),
    "xattr": (_xattr,),
    "truncated": (lambda root: os.truncate(root / "file", 1),),
    "another name": (lambda root: os.link(root / "file", root / "d" / "again"),),
    "root directory": (lambda root: root.chmod(0o700),),
    "xattr of the root directory": (lambda root: os.setxattr(root, "user.x", b"1"),),
    "special files": (
        lambda root: os.mkfifo(root / "fifo"),
        lambda root: os.mknod(root / "null", stat.S_IFCHR, os.makedev(1, 3)),
    ),
    "file to directory": (
        lambda root: (root / "file").unlink(),
        lambda root: (root / "file").mkdir(),
        lambda root: _edit(root, name="file/in"),
    ),
    "odd names": (_odd_names,),
    "everything": (_empty_the_tree,),
}


@knowing_changes()
@pytest.mark.parametrize("edit", _EDITS)
def test_changes_are_what_a_walk_finds(pool: Pool, edit: str) -> None:
    found, walked = _compare(pool, _EDITS[edit])
    assert found == walked


@knowing_changes()
def test_changes_back_are_what_a_walk_finds(pool: Pool) -> None:
    """The older of two trees may be named second."""
    _prepare(pool, [_swap])
    changes = pool.driver.changes(Key("s2"), Key("s1"))
    assert changes is not None
    assert list(changes) == _walk_both(pool, "s2", "s1")


@knowing_changes()
def test_changes_may_be_left_before_their_end(pool: Pool) -> None:
    _prepare(pool, [_empty_the_tree])
    changes = pool.driver.changes(Key("s1"), Key("s2"))
    assert changes is not None
    assert next(changes).kind is ChangeKind.REMOVED


@not_knowing_changes()
def test_a_driver_that_would_have_to_walk_says_so(pool: Pool) -> None:
    _prepare(pool, [])
    assert pool.driver.changes(Key("s1"), Key("s2")) is None


def _compare(pool: Pool, edits: Sequence[Edit]) -> tuple[list[Change], list[Change]]:
    _prepare(pool, edits)
    changes = pool.driver.changes(Key("s1"), Key("s2"))
    assert changes is not None
    return list(changes), _walk_both(pool, "s1", "s2")


def _prepare(pool: Pool, edits: Sequence[Edit]) -> None:
    pool.create("v1.1")
    _populate(pool.attach("v1.1"))
    pool.driver.detach(Key("v1.1"))
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    root = pool.attach("v1.1")
    for edit in edits:
        edit(root)
    pool.driver.detach(Key("v1.1"))
    pool.driver.clone(Key("v1.1"), Key("s2"), read_only=True)


def _walk_both(pool: Pool, base: str, key: str) -> list[Change]:
    old, new = _facts(pool.attach(base, read_only=True)), _facts(pool.attach(key, read_only=True))
    return sorted(
        Change(
            path, ChangeKind.REMOVED if path not in new else ChangeKind.ADDED if path not in old else ChangeKind.CHANGED
        )
        for path in old.keys() | new.keys()
        if old.get(path) != new.get(path)
    )


def _facts(root: Path) -> dict[str, tuple[object, ...]]:
    """Return by path what makes a difference: of a directory not its time, of anything else also its content."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (*(["."] if directory == str(root) else []), *names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            facts: list[object] = [status.st_mode, status.st_uid, status.st_gid, _xattrs(path)]
            if stat.S_ISREG(status.st_mode):
                facts += [status.st_mtime_ns, Path(path).read_bytes()]
            elif stat.S_ISLNK(status.st_mode):
                facts.append(os.readlink(path))
            found[os.path.relpath(path, root)] = tuple(facts)
    return found


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
