"""kernel/tree: a cursor that never leaves its tree, and vanish, which removes whatever a container's root made."""

import errno
import itertools
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scratch import Scratch
from voldriverd.kernel import btrfs as kernel_btrfs
from voldriverd.kernel import fs, mount, run, tree

pytestmark = pytest.mark.root


@pytest.fixture(params=["btrfs", "ext4", "xfs"])
def place(request: pytest.FixtureRequest, session_scratch: Scratch) -> Iterator[Path]:
    """Return an empty directory on each kind of file system."""
    root = session_scratch.shared(f"tree-{request.param}", request.param)
    path = root / "place"
    path.mkdir()
    yield path
    run.run(["rm", "-rf", str(path)])


@pytest.fixture
def btrfs(session_scratch: Scratch) -> Iterator[Path]:
    """Return an empty directory on btrfs."""
    path = session_scratch.shared("tree-btrfs", "btrfs") / "place"
    path.mkdir()
    yield path
    run.run(["rm", "-rf", str(path)])


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """Permit only `count` more descriptors than are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def nest(path: Path, depth: int) -> None:
    """Make `depth` directories, each in the one before."""
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def add_flags(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    fs.set_flags(fd, fs.get_flags(fd) | flags)
    os.close(fd)


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """Have one path mounted on another."""
    mount.bind(source, target, read_only=False)
    try:
        yield
    finally:
        mount.unmount(target)


def test_open_at_does_not_follow_a_symlink(place: Path) -> None:
    (place / "file").write_bytes(b"")
    (place / "link").symlink_to("file")
    with tree.Cursor(place) as cursor, pytest.raises(OSError, match="symbolic") as caught:
        tree.open_at(cursor.fd, "link", tree.READ)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("name", ["..", "/etc", "inner/../.."])
def test_open_at_does_not_lead_out(place: Path, name: str) -> None:
    (place / "inner").mkdir()
    with tree.Cursor(place) as cursor, pytest.raises(OSError, match="cross-device") as caught:
        tree.open_at(cursor.fd, name, tree.LOOK)
    assert caught.value.errno == errno.EXDEV


def test_reopen_opens_the_file_that_was_looked_at_under_any_name(place: Path) -> None:
    (place / "file").write_bytes(b"right")
    with tree.Cursor(place) as cursor:
        looked = tree.open_at(cursor.fd, "file", tree.LOOK)
        (place / "file").rename(place / "other")
        (place / "file").write_bytes(b"wrong")
        with open(tree.reopen(looked, tree.READ), "rb") as file:
            assert file.read() == b"right"
        os.close(looked)


def test_down_refuses_a_symlink_to_a_directory_and_names_it(place: Path) -> None:
    (place / "directory").mkdir()
    (place / "link").symlink_to("directory")
    with tree.Cursor(place) as cursor, pytest.raises(OSError, match="link") as caught:
        cursor.down("link")
    assert caught.value.errno in {errno.ELOOP, errno.ENOTDIR}


def test_down_refuses_a_mount_of_the_same_file_system_and_names_its_path(place: Path) -> None:
    (place / "outer" / "inner").mkdir(parents=True)
    (place / "elsewhere").mkdir()
    with bound(place / "elsewhere", place / "outer" / "inner"), tree.Cursor(place) as cursor:
        cursor.down("outer")
        with pytest.raises(OSError, match=r"mounted.*outer/inner") as caught:
            cursor.down("inner")
    assert caught.value.errno == errno.EBUSY


def test_down_enters_a_nested_subvolume(btrfs: Path) -> None:
    run.run(["btrfs", "subvolume", "create", str(btrfs / "sub")])
    with tree.Cursor(btrfs) as cursor:
        assert cursor.down("sub").st_ino == kernel_btrfs.BTRFS_FIRST_FREE_OBJECTID
        assert cursor.up() == "sub"


def test_up_returns_every_step_from_deeper_than_the_descriptors_kept(place: Path) -> None:
    nest(place, 50)
    with tree.Cursor(place) as cursor:
        seen = [cursor.down("d").st_ino for _ in range(50)]
        cursor.up()
        met = []
        while cursor.depth:
            met.append(os.fstat(cursor.fd).st_ino)
            assert cursor.up() == "d"
        assert met == seen[-2::-1]
        assert os.fstat(cursor.fd).st_ino == place.stat().st_ino


def test_up_refuses_a_parent_that_is_another_directory_now(place: Path) -> None:
    nest(place, 40)
    (place / "elsewhere").mkdir()
    with tree.Cursor(place) as cursor:
        for _ in range(40):
            cursor.down("d")
        deep = place.joinpath(*["d"] * 12)
        deep.rename(place / "elsewhere" / "d")
        with pytest.raises(OSError, match="moved") as caught:
            _climb(cursor)
    assert caught.value.errno == errno.ESTALE


def _climb(cursor: tree.Cursor) -> None:
    while cursor.depth:
        cursor.up()


def test_a_path_for_people_is_cut(place: Path) -> None:
    nest(place, 3_000)
    with tree.Cursor(place) as cursor:
        assert cursor.path() == "."
        for _ in range(3_000):
            cursor.down("d")
        assert len(cursor.path("name")) <= 4_096


def test_vanish_of_what_is_absent_does_nothing(place: Path) -> None:
    tree.vanish(place / "absent")
    assert os.listdir(place) == []


def test_vanish_removes_every_kind_of_file(place: Path) -> None:
    doomed = place / "doomed"
    (doomed / "directory" / "empty").mkdir(parents=True)
    (doomed / "closed").mkdir(0)
    (doomed / "file").write_bytes(b"content")
    os.link(doomed / "file", doomed / "directory" / "hard link")
    (doomed / "link").symlink_to("/etc")
    os.mkfifo(doomed / "fifo")
    os.mknod(doomed / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(doomed / "socket"))
    (doomed / "new\nline").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(doomed) + b"/\xff\xfe")).mkdir()
    tree.vanish(doomed)
    assert os.listdir(place) == []


def test_vanish_does_not_follow_symlinks(place: Path) -> None:
    (place / "kept").mkdir()
    (place / "kept" / "file").write_bytes(b"content")
    (place / "doomed").mkdir()
    (place / "doomed" / "link").symlink_to("../kept")
    tree.vanish(place / "doomed")
    assert (place / "kept" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("flag", [fs.FS_IMMUTABLE_FL, fs.FS_APPEND_FL])
def test_vanish_clears_flags_of_files_and_directories(place: Path, flag: int) -> None:
    inner = place / "doomed" / "inner"
    inner.mkdir(parents=True)
    (inner / "empty").mkdir()
    (inner / "file").write_bytes(b"")
    os.mkfifo(inner / "fifo")
    for path in (inner / "file", inner / "empty", inner, place / "doomed"):
        add_flags(path, flag)
    tree.vanish(place / "doomed")
    assert os.listdir(place) == []


def test_vanish_never_opens_a_fifo_in_a_protected_directory(place: Path) -> None:
    (place / "doomed").mkdir()
    os.mkfifo(place / "doomed" / "fifo")
    add_flags(place / "doomed", fs.FS_IMMUTABLE_FL)
    tree.vanish(place / "doomed")
    assert os.listdir(place) == []


def test_vanish_goes_on_when_a_file_has_gone_already(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "doomed").mkdir()
    (place / "doomed" / "file").write_bytes(b"")
    unlink = os.unlink

    def unlink_twice(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_twice)
    tree.vanish(place / "doomed")
    assert os.listdir(place) == []


def test_vanish_stops_when_its_time_is_up(place: Path) -> None:
    (place / "doomed").mkdir()
    (place / "doomed" / "file").write_bytes(b"")
    with pytest.raises(TimeoutError, match="doomed"):
        tree.vanish(place / "doomed", timeout_s=0)
    assert os.listdir(place / "doomed") == ["file"]


def test_vanish_leaves_the_other_names_of_a_hard_linked_file(place: Path) -> None:
    (place / "doomed").mkdir()
    (place / "kept").write_bytes(b"content")
    os.link(place / "kept", place / "doomed" / "file")
    tree.vanish(place / "doomed")
    assert (place / "kept").read_bytes() == b"content"


def test_vanish_removes_nested_and_read_only_subvolumes(btrfs: Path) -> None:
    doomed = btrfs / "doomed"
    for path in (doomed, doomed / "sub", doomed / "sub" / "inner" / "subsub"):
        path.parent.mkdir(exist_ok=True)
        run.run(["btrfs", "subvolume", "create", str(path)])
        (path / "file").write_bytes(b"content")
    run.run(["btrfs", "subvolume", "snapshot", "-r", str(doomed / "sub"), str(doomed / "snapshot")])
    for path in (doomed / "sub" / "inner" / "subsub", doomed / "sub", doomed):
        run.run(["btrfs", "property", "set", str(path), "ro", "true"])
    tree.vanish(doomed)
    assert os.listdir(btrfs) == []


def test_vanish_refuses_a_mount_inside_and_leaves_what_is_mounted(place: Path) -> None:
    (place / "kept").mkdir()
    (place / "kept" / "file").write_bytes(b"content")
    (place / "doomed" / "inner" / "mounted").mkdir(parents=True)
    with bound(place / "kept", place / "doomed" / "inner" / "mounted"):
        with pytest.raises(OSError, match="doomed/inner/mounted") as caught:
            tree.vanish(place / "doomed")
        assert caught.value.errno == errno.EBUSY
        assert (place / "kept" / "file").read_bytes() == b"content"


def test_vanish_refuses_a_file_that_is_mounted_over_and_names_it(place: Path) -> None:
    (place / "kept").write_bytes(b"content")
    (place / "doomed").mkdir()
    (place / "doomed" / "file").write_bytes(b"")
    with bound(place / "kept", place / "doomed" / "file"):
        with pytest.raises(OSError, match="doomed/file") as caught:
            tree.vanish(place / "doomed")
        assert caught.value.errno == errno.EBUSY
        assert (place / "kept").read_bytes() == b"content"


def test_vanish_needs_few_descriptors_and_no_recursion(place: Path) -> None:
    (place / "doomed").mkdir()
    nest(place / "doomed", 3_000)
    with few_descriptors(tree._FDS_KEPT + 4):
        tree.vanish(place / "doomed")
    assert os.listdir(place) == []


def test_vanish_empties_a_directory_again_that_was_filled_meanwhile(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "doomed" / "inner").mkdir(parents=True)
    removals: list[str] = []

    def fill_once(name: str, *, dir_fd: int) -> None:
        if not removals:
            (place / "doomed" / "inner" / "late").mkdir()
        removals.append(name)
        rmdir(name, dir_fd=dir_fd)

    rmdir = os.rmdir
    monkeypatch.setattr(os, "rmdir", fill_once)
    tree.vanish(place / "doomed")
    assert removals == ["inner", "late", "inner", "doomed"]


def test_vanish_gives_up_on_a_directory_that_is_filled_without_end(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "doomed" / "inner").mkdir(parents=True)

    def refuse(name: str, *, dir_fd: int) -> None:
        raise OSError(errno.ENOTEMPTY, f"{name} {dir_fd}")

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OSError, match="doomed/inner") as caught:
        tree.vanish(place / "doomed")
    assert caught.value.errno == errno.ENOTEMPTY


def test_vanish_stays_inside_while_directories_and_symlinks_change_places(place: Path) -> None:
    (place / "kept").mkdir()
    for number in range(50):
        (place / "kept" / str(number)).write_bytes(b"")
    for _ in range(20):
        _vanish_under_attack(place)
    assert len(os.listdir(place / "kept")) == 50


def _vanish_under_attack(place: Path) -> None:
    """Remove a tree while a directory in it is replaced by a symlink to a directory outside, again and again."""
    target = place / "doomed" / "target"
    target.mkdir(parents=True)
    aside = place / "doomed" / "aside"
    aside.symlink_to("../kept")
    stop = threading.Event()
    attacker = threading.Thread(target=_swap, args=(target, aside, stop))
    attacker.start()
    try:
        tree.vanish(place / "doomed")
    except OSError:  # the attacker may make it fail, but not reach outside
        pass
    finally:
        stop.set()
        attacker.join()
    tree.vanish(place / "doomed")


def _swap(one: Path, other: Path, stop: threading.Event) -> None:
    names = (str(one), f"{one}.aside", str(other))
    while not stop.is_set():
        try:
            os.rename(names[0], names[1])
            os.rename(names[2], names[0])
            os.rename(names[1], names[2])
        except OSError:
            return


_DIES = """
import os, signal, sys
from pathlib import Path
from voldriverd.kernel import tree

def dying(call, left=[int(sys.argv[2])]):
    def replacement(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return replacement

os.unlink, os.rmdir = dying(os.unlink), dying(os.rmdir)
tree.vanish(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", [1, 2, 5, 9, 20, 21])
def test_a_killed_vanish_can_be_ended(btrfs: Path, step: int) -> None:
    for number in range(3):
        (btrfs / "doomed" / str(number) / "inner").mkdir(parents=True)
        for name in range(5):
            (btrfs / "doomed" / str(number) / "inner" / str(name)).write_bytes(b"")
    argv = [sys.executable, "-c", _DIES, str(btrfs / "doomed"), str(step)]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    assert (btrfs / "doomed").exists()
    tree.vanish(btrfs / "doomed")
    assert os.listdir(btrfs) == []


def test_empty_directories_take_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = tmp_path / "doomed"
    for number in range(100):
        (doomed / str(number)).mkdir(parents=True)
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(TimeoutError):
        tree.vanish(doomed, timeout_s=150)
    assert 0 < len(os.listdir(doomed)) < 100
    tree.vanish(doomed)
    assert not doomed.exists()
