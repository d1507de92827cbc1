"""engine/comparison: whatever a copy has not as its source is found, and named."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import content
from voldriverd.backup.faults import Cancelled
from voldriverd.engine import comparison
from voldriverd.kernel import copying

pytestmark = pytest.mark.root


def ignore(_bytes: int) -> None:
    pass


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "source").mkdir()
    content.fill(tmp_path / "source")
    copying.copy_tree(tmp_path / "source", tmp_path / "made", live=False)
    return tmp_path / "source", tmp_path / "made"


def differ(pair: tuple[Path, Path]) -> str | None:
    return comparison.first_difference(*pair, advance=ignore)


def test_a_copy_is_like_its_source(pair: tuple[Path, Path]) -> None:
    assert differ(pair) is None
    assert differ((pair[1], pair[0])) is None


def keeping_time(path: Path, change: Callable[[], object]) -> None:
    status = path.lstat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def relink(path: Path) -> None:
    status = path.lstat()
    path.unlink()
    path.symlink_to("elsewhere")
    os.lchown(path, status.st_uid, status.st_gid)


def split(path: Path) -> None:
    """Make a file of its own of one of two names."""
    parts, status = path.read_bytes(), path.stat()
    xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    path.unlink()
    path.write_bytes(parts)
    os.chown(path, status.st_uid, status.st_gid)
    path.chmod(status.st_mode & 0o7777)
    for name, value in xattrs.items():
        os.setxattr(path, name, value)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a byte": (
        "log",
        lambda path: keeping_time(path, lambda: write(path, 0, b"\x01")),
        "its content differs, from",
    ),
    "a hole": (
        "sparse",
        lambda path: keeping_time(path, lambda: write(path, 70_000, b"x")),
        "its content differs, from",
    ),
    "a mode": ("large", lambda path: path.chmod(0o604), "its mode differs"),
    "an owner": ("large", lambda path: os.chown(path, 77, 78), "its owner differs"),
    "a time": ("directory/inner", lambda path: os.utime(path, ns=(0, 1)), "its time differs"),
    "a link": ("link", lambda path: keeping_time(path, lambda: relink(path)), "its target differs"),
    "an attribute": (
        "tiny",
        lambda path: keeping_time(path, lambda: os.removexattr(path, "user.binary")),
        "its extended attributes differ",
    ),
    "a file": ("large", lambda path: path.rename(path.with_name("other")), "large: it is in the source only"),
    "a twin": ("tiny again", split, "it is not the same file as another name of it"),
    "the root": ("", lambda path: path.chmod(0o700), ".: its mode differs"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named(pair: tuple[Path, Path], name: str) -> None:
    where, change, said = CHANGES[name]
    path = pair[1] / where
    keeping_time(path.parent if where else path, lambda: change(path))
    found = differ(pair)
    assert found is not None
    assert said in found


def test_what_is_too_much_in_the_copy_is_named(pair: tuple[Path, Path]) -> None:
    keeping_time(pair[1] / "directory", (pair[1] / "directory" / "new").mkdir)
    assert differ(pair) == "directory/new: it is in the copy only"


def test_sockets_are_not_compared(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0])  # a socket's path has 107 bytes

    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind("socket")

    keeping_time(pair[0], bind)
    assert differ(pair) is None


def test_who_watches_may_end_it(pair: tuple[Path, Path]) -> None:
    def stop(_bytes: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        comparison.first_difference(*pair, advance=stop)
