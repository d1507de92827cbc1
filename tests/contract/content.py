"""What streams must keep: a tree with one of everything that tar can hold, and the ways in which it may change."""

import os
import stat
from pathlib import Path
from typing import Final

from tests.likeness import Facts, describe
from voldriverd.kernel import run

_CAPABILITY: Final = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep as setcap(8) stores it (linux/capability.h, struct vfs_cap_data)."""
_UNALIKE: Final = ("times", "flags")


def fill(root: Path) -> None:
    """Make one of everything."""
    root.chmod(0o2751)
    os.chown(root, 11, 12)
    _make_files(root)
    _make_special_files(root)
    _make_attributes(root)
    _make_names(root)
    _make_links(root)
    for number, name in enumerate(["tiny", "large", "link", "fifo", "directory/inner", "directory", ""]):
        os.utime(root / name, ns=(0, 1_234_567_890_123_456_789 + number), follow_symlinks=False)


def change(root: Path) -> None:
    """Change some of everything, but for a large part of it."""
    with (root / "large").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    with (root / "log").open("ab") as file:
        file.write(b"another line\n")
    (root / "new").write_bytes(os.urandom(10_000))
    (root / "directory" / "inner" / "new").mkdir()
    (root / "unreadable").unlink()
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    (root / "suid").rename(root / "directory" / "renamed")
    (root / "empty").unlink()
    (root / "empty").mkdir()
    os.truncate(root / "sparse", 2 << 20)
    os.link(root / "large", root / "directory" / "large")
    (root / "tiny again").unlink()
    os.removexattr(root / "tiny", "user.binary")
    os.setxattr(root / "large", "user.new", b"value")
    (root / "directory").chmod(0o711)
    os.utime(root / "directory", ns=(0, 987_654_321))


def likeness(root: Path) -> dict[bytes, Facts]:
    """Describe a tree without what no stream holds (atimes) and not all do (inode flags)."""
    found = describe(root)
    for facts in found.values():
        facts["mtime"] = str(facts["times"]).split(",")[1]
        for name in _UNALIKE:
            facts.pop(name, None)
    return found


def _make_files(root: Path) -> None:
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "closed").mkdir(0)
    (root / "empty").write_bytes(b"")
    (root / "tiny").write_bytes(b"x")
    (root / "log").write_bytes(b"line\n" * 10_000)
    (root / "large").write_bytes(os.urandom(3 << 20))
    (root / "suid").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "suid", 1234, 4_000_000_000)
    (root / "suid").chmod(0o6755)
    (root / "unreadable").write_bytes(b"secret")
    (root / "unreadable").chmod(0)
    with (root / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(1 << 20)
        file.write(os.urandom(300_000))


def _make_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o640)
    os.chown(root / "fifo", 7, 8)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 200_000))
    (root / "link").symlink_to("/etc/passwd")
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    (root / "dangling").symlink_to(os.fsdecode(b"no\xffwhere\n"))


def _make_attributes(root: Path) -> None:
    os.setxattr(root / "tiny", "user.empty", b"")
    os.setxattr(root / "tiny", "user.binary", bytes(range(256)))
    os.setxattr(root / "large", "security.capability", _CAPABILITY)
    for name in ("", "directory", "link", "fifo", "null", "tiny"):
        os.setxattr(root / name, "trusted.overlay.opaque", b"y", follow_symlinks=False)
    run.run(["setfacl", "-m", "u:1000:rwx,g:50:r-x,m::r-x", str(root / "tiny"), str(root / "directory")])
    run.run(["setfacl", "-d", "-m", "u:1000:rwx,g:50:r-x", str(root / "directory"), str(root)])


def _make_names(root: Path) -> None:
    base = os.fsencode(root)
    for name in (b"new\nline", b"\xff\xfe", b"-rf", b" ", b"n" * 255):
        Path(os.fsdecode(os.path.join(base, name))).write_bytes(name)
    os.makedirs(os.path.join(base, b"/".join([b"deep"] * 40)))


def _make_links(root: Path) -> None:
    os.link(root / "tiny", root / "tiny again")
    os.link(root / "tiny", root / "directory" / "inner" / "tiny")
    os.link(root / "link", root / "directory" / "link", follow_symlinks=False)
    os.link(root / "fifo", root / "directory" / "fifo")
