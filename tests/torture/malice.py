"""What a container's root may write into its volume, and every verb on a volume that holds it.

Beside the pools lies a canary: a directory with a file in it to which links lead. inotify(7) tells if anybody so much
as opens it. Nothing but an answer in the dialect is right, and the volume can always be removed.
"""

import contextlib
import ctypes
import http.client
import io
import json
import os
import random
import socket
import stat
import struct
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tests.running import Answer, Running
from tests.torture.bench import Places, daemon_config
from voldriverd.kernel import fs
from voldriverd.kernel import run as tools

CONTENT: Final = b"CANARY: nobody may read this through a volume"
DEPTH: Final = 1_100
"""Deeper than paths reach (4,096 bytes), and than Python's stack; the long form goes to 100,000."""
STEP: Final = "one-of-very-many-dirs"
"""`btrfs send` takes time by the square of a depth, up to where paths end (6.18: 36 s for 1,400): here soon."""
SETTLE_S: Final = 120.0
_PAUSE_S: Final = 0.02
_IN_ALL: Final = 0xFFF
"""IN_ALL_EVENTS of linux/inotify.h"""
_EVENT: Final = struct.Struct("iIII")
_NO_DEVICE: Final = os.makedev(259, 200_000)
"""There is none, so that opening it fails."""
_MIB: Final = 1 << 20


class Canary:
    """A directory outside of every tree; `touched` tells what was done to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "file"
        directory.mkdir()
        self.file.write_bytes(CONTENT)
        self.file.chmod(0o600)
        self._before = self._facts()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in (directory, self.file):
            assert self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_ALL) >= 0

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._fd)

    def touched(self) -> list[str]:
        """Return every event since the last call, and whether anything has changed."""
        found = []
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._fd, 1 << 16)
            while events:
                _, mask, _, length = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                found.append(f"event {mask:#x} of {name!r}")
                events = events[_EVENT.size + length :]
        if not found and self._facts() != self._before:
            found.append("it has changed")
        return found

    def _facts(self) -> list[tuple[int, ...]]:
        status = [path.lstat() for path in (self.directory, self.file)]
        return [(each.st_mode, each.st_uid, each.st_gid, each.st_mtime_ns, each.st_ctime_ns) for each in status]


@dataclass(frozen=True, slots=True)
class Malice:
    """One kind: what is written first, what later, and what of it somebody asks for."""

    name: str
    first: Callable[[Path, Canary], object]
    later: Callable[[Path, Canary], object]
    paths: tuple[str, ...] = ()
    """Asked for in snapshots and backups."""
    on: frozenset[str] = frozenset({"btrfs", "loop", "directory"})
    may_refuse: frozenset[str] = frozenset()
    """The verbs that may answer with an error, which names the cause."""


def _links(place: Path, canary: Canary) -> None:
    up = "../" * 40
    targets: dict[str, str | Path] = {
        "file": canary.file,
        "folder": canary.directory,
        "up": f"{up}{canary.directory}"[:4_000],
        "root": "/",
        "self": "self",
        "dot": "..",
        "proc": "/proc/self/root",
        "fd": "/proc/self/fd/0",
        "none": "/nowhere",
    }
    (place / "inner").mkdir()
    for name, target in targets.items():
        (place / name).symlink_to(target)
        (place / "inner" / name).symlink_to(target)


def _links_later(place: Path, canary: Canary) -> None:
    (place / "file").unlink()
    (place / "file").symlink_to(f"{canary.file}.")
    os.link(place / "folder", place / "folder again", follow_symlinks=False)


def _swapped(place: Path, _canary: Canary) -> None:
    (place / "swapped" / "inner").mkdir(parents=True)
    (place / "swapped" / "file").write_bytes(b"mine")
    (place / "swapped" / "inner" / "file").write_bytes(b"mine")
    (place / "flat").write_bytes(b"mine")


def _swapped_later(place: Path, canary: Canary) -> None:
    (place / "swapped").rename(place / "was")
    (place / "swapped").symlink_to(canary.directory)
    (place / "flat").unlink()
    (place / "flat").symlink_to(canary.file)
    (place / "was" / "inner").rename(place / "was" / "away")
    (place / "was" / "inner").symlink_to(canary.directory)


def _specials(place: Path, _canary: Canary) -> None:
    os.mkfifo(place / "fifo")
    os.mknod(place / "block", stat.S_IFBLK | 0o666, _NO_DEVICE)
    os.mknod(place / "char", stat.S_IFCHR | 0o666, _NO_DEVICE)
    os.mknod(place / "whiteout", stat.S_IFCHR, 0)
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.open(place, os.O_PATH)
        listener.bind(f"/proc/self/fd/{fd}/socket")
        os.close(fd)
    for mode in (0o4755, 0o2755, 0o6777):
        (place / f"{mode:o}").write_bytes(b"#!/bin/sh\n")
        (place / f"{mode:o}").chmod(mode)
    os.setxattr(place / "4755", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    (place / "closed").mkdir(0)
    with (place / "hollow").open("wb") as file:
        file.truncate(64 * _MIB)
    place.chmod(0o7777)


def _specials_later(place: Path, _canary: Canary) -> None:
    for name in ("fifo", "block", "char", "socket"):
        (place / name).rename(place / f"{name}2")
    os.mkfifo(place / "block")
    place.chmod(0)


def _names(place: Path, _canary: Canary) -> None:
    (place / "names").mkdir()
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(b"mine")
        Path(os.fsdecode(os.fsencode(place) + b"/names/" + name)).mkdir()


def _names_later(place: Path, _canary: Canary) -> None:
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(b"mine and more")


ODD_NAMES: Final = (
    *(b"new\nline", b"\r", b"\t", b"\xff\xfe", b"-rf", b"--", b" ", b"...", b"n" * 255, b"\x1b[2J\x1b]0;title\x07"),
    *(b'{"path":"x"}', b"%s%n%x", b"$(reboot)", b"`reboot`", b";reboot", b"*", b"\\", b'"', b"'", b"//deleted"[2:]),
    *(b"\xed\xa0\x80", b"\xf0\x9f\x92\xa9", b"\x7f", b"e\xcc\x81"),
)


def look_alikes(place: Path, canary: Canary) -> None:
    """Write what our own files are called, as files, directories and links out."""
    makers: tuple[Callable[[Path], object], ...] = (_file, Path.mkdir, lambda path: path.symlink_to(canary.directory))
    for number, name in enumerate(OUR_NAMES):
        makers[number % len(makers)](place / name)


OUR_NAMES: Final = (
    *(".voldriver-pool", ".voldriver-catalogue", ".voldriver-catalogue.part", "voldriver.db", "trees", "mounts"),
    *("files", "read_only", "data", "lost+found", ".part-v1.1", ".gone-v1.1", ".old-1", ".part.v1.1", "v1.1", "s1"),
    *("scratch", "targets", "lock", "embedded", ".v1.1-abcdefgh", "stage", "0", "pool", "by-name"),
)


def _file(path: Path) -> None:
    path.write_bytes(b'{"uuid": "mine", "driver": "btrfs", "version": "1"}')


def _more_alikes(place: Path, canary: Canary) -> None:
    for name in OUR_NAMES[::3]:
        (place / name).unlink()
        (place / name).symlink_to(canary.file)


def _flags(place: Path, _canary: Canary) -> None:
    for flag, name in ((fs.FS_IMMUTABLE_FL, "immutable"), (fs.FS_APPEND_FL, "append")):
        (place / name / "inner").mkdir(parents=True)
        (place / name / "file").write_bytes(b"mine")
        for path in (place / name / "file", place / name / "inner", place / name):
            set_flag(path, flag)


def _flags_later(place: Path, _canary: Canary) -> None:
    set_flag(place, fs.FS_IMMUTABLE_FL)


def set_flag(path: Path, flag: int) -> None:
    """Add an inode flag."""
    fd = os.open(path, os.O_RDONLY)
    fs.set_flags(fd, fs.get_flags(fd) | flag)
    os.close(fd)


def deep(depth: int) -> Callable[[Path, Canary], None]:
    """Return what makes so many directories, each in the one before."""

    def make(place: Path, _canary: Canary) -> None:
        fd = os.open(place, os.O_RDONLY)
        try:
            for _ in range(depth):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(STEP, dir_fd=fd)
                inner = os.open(STEP, os.O_RDONLY, dir_fd=fd)
                os.close(fd)
                fd = inner
            os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        finally:
            os.close(fd)

    return make


def _subvolumes(place: Path, canary: Canary) -> None:
    for path in (place / "sub", place / "sub" / "a" / "b" / "subsub", place / "other"):
        path.parent.mkdir(parents=True, exist_ok=True)
        tools.run(["btrfs", "subvolume", "create", str(path)])
        (path / "file").write_bytes(b"mine")
        (path / "link").symlink_to(canary.directory)
    inner = place / "other"
    for _ in range(20):
        inner /= "s"
        tools.run(["btrfs", "subvolume", "create", str(inner)])
    for path in (inner, place / "sub" / "a" / "b" / "subsub"):
        tools.run(["btrfs", "property", "set", str(path), "ro", "true"])


def _subvolumes_later(place: Path, _canary: Canary) -> None:
    tools.run(["btrfs", "subvolume", "snapshot", "-r", str(place / "sub"), str(place / "copy")])
    tools.run(["btrfs", "property", "set", str(place / "sub"), "ro", "true"])


def _nothing(_place: Path, _canary: Canary) -> None:
    """Write no more."""


MALICES: Final = (
    Malice("links", _links, _links_later, ("file", "folder/file", "root", "dot/file", "inner/folder/file", "proc/etc")),
    Malice("swapped", _swapped, _swapped_later, ("swapped", "swapped/file", "flat", "was/inner/file")),
    Malice("specials", _specials, _specials_later, ("fifo", "block", "whiteout", "closed")),
    Malice("names", _names, _names_later, ("new\nline", "-rf", "names")),
    Malice("alikes", look_alikes, _more_alikes, ("trees", "data", "files", "lock", ".voldriver-pool")),
    Malice("subvolumes", _subvolumes, _subvolumes_later, ("sub", "other/s"), on=frozenset({"btrfs", "directory"})),
    Malice("flags", _flags, _flags_later, ("immutable",)),
)
"""The last makes the root directory immutable."""


def together(driver: str, malices: Sequence[Malice] = MALICES) -> Malice:
    """Return several as one, those that a driver's volumes can hold."""
    chosen = [each for each in malices if driver in each.on]

    def first(place: Path, canary: Canary) -> None:
        for each in chosen:
            each.first(place, canary)

    def later(place: Path, canary: Canary) -> None:
        for each in chosen:
            each.later(place, canary)

    return Malice(" ".join(each.name for each in chosen), first, later, sum((each.paths for each in chosen), ()))


def deep_malice(depth: int = DEPTH) -> Malice:
    """Return the one of nested directories; what is deeper than paths reach cannot be archived or compared."""
    return Malice("deep", deep(depth), _nothing, (STEP,), may_refuse=frozenset({"archive", "difference"}))


class Victim:
    """A volume of a daemon, and every verb on it; a refusal that is not expected is an AssertionError."""

    def __init__(self, daemon: Running, name: str, driver: str, options: dict[str, str], canary: Canary) -> None:
        self._daemon = daemon
        self._canary = canary
        self._may_refuse: frozenset[str] = frozenset()
        self.refused: list[str] = []
        self.row = self._settled(self._post("create", "volumes", name=name, driver=driver, driverOpts=options))

    def suffer(self, malice: Malice) -> None:
        """Have the malice written and every verb tried."""
        self._may_refuse = malice.may_refuse
        self._write(malice.first)
        before = self._act("snapshot", name="before")
        self._write(malice.later)
        after = self._act("snapshot", name="after")
        self._look(before, after, malice.paths)
        self._clone(after)
        self._act("reverttosnapshot", snapshotId=before["id"])
        self._back_up(malice.paths)
        self._act("reverttosnapshot", snapshotId=after["id"])
        self._write(_nothing)

    def survive(self, image: Callable[[str], Path], chance: random.Random) -> str:
        """Have the image damaged; every verb is done or refused with the cause, and a snapshot brings it back."""
        self._may_refuse = frozenset({*dict(_ON_DAMAGE), "clone", "difference"})
        before = self._act("snapshot", name="sound")
        way = damage(image(self.row["id"]), chance)
        fields: dict[str, str]
        for action, fields in (*_ON_DAMAGE, ("clone", {"name": f"{self.row['name']}-copy"})):
            answer = self._daemon.api("POST", f"/v1/volumes/{self.row['id']}?action={action}", fields)
            if self._is_done(action, answer):
                self._ended(answer.body)
        self._get("difference", f"snapshots/{before['id']}/difference")
        self._act("reverttosnapshot", snapshotId=before["id"])
        self._write(_nothing)
        for clone in self._daemon.api("GET", f"/v1/volumes?name={self.row['name']}-copy").body["data"]:
            self._take_away(clone)
        return way

    def fall(self, depth: int) -> None:
        """Have a snapshot, a clone and a revert of very many nested directories."""
        self._write(deep(depth))
        snapshot = self._act("snapshot", name="deep")
        self._clone(snapshot)
        self._act("reverttosnapshot", snapshotId=snapshot["id"])

    def remove(self) -> None:
        """Remove the volume for good; nobody may refuse that."""
        self._may_refuse = frozenset()
        self._take_away(self.row)

    def check(self, what: str) -> None:
        """See that the canary is as it was and nobody has looked at it."""
        assert self._canary.touched() == [], what

    def _write(self, write: Callable[[Path, Canary], object]) -> None:
        with self._mounted(self.row) as place:
            write(place, self._canary)
        self._canary.touched()  # who writes a link may look where it leads

    def _look(self, before: dict[str, Any], after: dict[str, Any], paths: tuple[str, ...]) -> None:
        for query in (f"{before['id']}/difference?to={after['id']}", f"{after['id']}/difference"):
            changes = self._get("difference", f"snapshots/{query}")
            for line in changes.splitlines():
                assert set(json.loads(line)) == {"path", "change"}
        for snapshot in (before, after):
            for path in ("", *paths):
                self._archive(f"snapshots/{snapshot['id']}", path)

    def _clone(self, snapshot: dict[str, Any]) -> None:
        made = self._act("clone", name=f"{self.row['name']}-clone", snapshotId=snapshot["id"])
        with self._mounted(made):
            pass
        self._take_away(made)

    def _back_up(self, paths: tuple[str, ...]) -> None:
        backup = self._act("backup")
        self._settled(self._post("verify", f"backups/{backup['id']}?action=verify"))
        for path in paths:
            self._archive(f"backups/{backup['id']}", path)
        name, options = f"{self.row['name']}-restored", {"from": f"backup:{backup['id']}"}
        made = self._settled(self._post("restore", "volumes", name=name, driverOpts=options))
        with self._mounted(made):
            pass
        self._take_away(made)
        self._act("restorefrombackup", backupId=backup["id"])
        assert self._daemon.api("DELETE", f"/v1/backups/{backup['id']}").status < 300

    def _take_away(self, row: dict[str, Any]) -> None:
        for method, path in (("DELETE", row["id"]), ("POST", f"{row['id']}?action=purge")):
            answer = self._daemon.api(method, f"/v1/volumes/{path}")
            assert answer.status < 300, answer.body
        self.check("remove")

    @contextmanager
    def _mounted(self, row: dict[str, Any]) -> Iterator[Path]:
        mounted = self._post("activate", f"volumes/{row['id']}?action=activate")
        yield Path(mounted["mountpoint"])
        self._post("deactivate", f"volumes/{row['id']}?action=deactivate")

    def _act(self, action: str, **fields: object) -> dict[str, Any]:
        return self._settled(self._post(action, f"volumes/{self.row['id']}?action={action}", **fields))

    def _post(self, verb: str, path: str, **fields: object) -> dict[str, Any]:
        answer = self._daemon.api("POST", f"/v1/{path}", fields)
        assert self._is_done(verb, answer), answer.body
        return dict(answer.body)

    def _settled(self, row: dict[str, Any]) -> dict[str, Any]:
        row = self._ended(row)
        assert row["transitioning"] == "no", row
        self.check(f"{row['type']} {row['name']}")
        return row

    def _ended(self, row: dict[str, Any]) -> dict[str, Any]:
        end_s = time.monotonic() + SETTLE_S
        while row["transitioning"] == "yes":
            assert time.monotonic() < end_s, row
            time.sleep(_PAUSE_S)
            row = self._daemon.api("GET", f"/v1/{row['type']}s/{row['id']}").body
        return row

    def _archive(self, of: str, path: str) -> None:
        raw = self._get("archive", f"{of}/archive?path={quote(path)}")
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            for member in archive:
                if member.isreg() and member.size < _MIB:
                    content = archive.extractfile(member)
                    assert content is not None
                    assert CONTENT not in content.read()

    def _get(self, verb: str, path: str) -> bytes:
        """Return what a stream says; nothing if it was refused, or cut off as it may be."""
        try:
            answer = self._daemon.api("GET", f"/v1/{path}")
        except http.client.IncompleteRead:
            assert verb in self._may_refuse, path
            return bytes(1_024)
        self.check(f"{verb} {path}")
        if verb == "archive" and answer.status in {404, 422}:
            return bytes(1_024)  # a path through a link that leads out, or what this snapshot has not
        return answer.body if self._is_done(verb, answer) else b""

    def _is_done(self, verb: str, answer: Answer) -> bool:
        if answer.status < 300:
            return True
        self.refused.append(verb)
        assert verb in self._may_refuse, (verb, answer.status, answer.body)
        assert answer.body["type"] == "error"
        assert "internal" not in answer.body["message"]
        return False


_ON_DAMAGE: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("snapshot", {"name": "damaged"}),
    ("activate", {}),
    ("snapshot", {"name": "mounted"}),
    ("deactivate", {}),
    ("resize", {"size": "400M"}),
    ("backup", {}),
)


def damage(image: Path, chance: random.Random) -> str:
    """Damage the image of a loop volume as only the pool's disk could; return how."""
    way = chance.choice(("superblock", "metadata", "cut", "garbage"))
    with image.open("r+b") as file:
        size_bytes = image.stat().st_size
        if way == "superblock":
            file.write(bytes(128 << 10))
        elif way == "cut":
            file.truncate(size_bytes // 3)
        else:
            for _ in range(400 if way == "metadata" else 20):
                file.seek(chance.randrange(size_bytes // 4 if way == "metadata" else 1 << 20))
                file.write(chance.randbytes(64 if way == "metadata" else 8_192))
        file.flush()
        os.fsync(file.fileno())
    return way


LONG_DEPTH: Final = 100_000
_DRIVERS: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("btrfs", {}),
    ("loop", {"size": "256M"}),
    ("loop", {"size": "320M", "fs": "xfs"}),
    ("directory", {}),
)


def run(places: Places, *, seed: int, time_s: float) -> Counter[str]:
    """Have volumes of every driver suffer until the time is up, each malice alone first; count what was done."""
    chance = random.Random(seed)
    base = next(iter(places.pools.values())) / "malice-target"
    base.mkdir()
    config = daemon_config(places, "malice") + f'[targets.disk]\nurl = "file://{base}"\n'
    canary, done, end_s = Canary(places.base / "canary"), Counter[str](), time.monotonic() + time_s
    with Running(places.base / "malice", config=config) as daemon:
        for number, chosen in enumerate(_rounds(chance)):
            driver, options = chance.choice(_DRIVERS)
            victim = Victim(daemon, f"v{number}", driver, options, canary)
            if chosen is None and driver == "loop":
                images = places.pools["loop"] / "malice" / "loop" / "trees"
                done[victim.survive(lambda key: images / f"{key.removeprefix('1')}.1", chance)] += 1  # noqa: B023
            else:
                each = together(driver, chosen or [deep_malice(chance.choice((DEPTH, 2 * DEPTH)))])
                victim.suffer(each)
                done[f"{driver} {each.name}"] += 1
            victim.remove()
            if time.monotonic() > end_s:
                break
        _fall(daemon, canary)
        done[f"depth {LONG_DEPTH}"] += 1
        assert "Traceback" not in daemon.log, daemon.log[-5_000:]
    canary.close()
    return done


def _rounds(chance: random.Random) -> Iterator[list[Malice] | None]:
    """Yield each alone, then any of them together, damage (None) and depth ([]) among them."""
    yield from ([each] for each in MALICES)
    while True:
        yield None
        yield []
        yield chance.sample(MALICES[:-1], chance.randint(1, 4)) + list(MALICES[-1:])


def _fall(daemon: Running, canary: Canary) -> None:
    """Have a volume of each driver with very many nested directories snapshot, cloned and removed."""
    for driver, options in _DRIVERS[:2]:
        victim = Victim(daemon, f"deep-{driver}", driver, {**options, "size": "2G"} if options else {}, canary)
        victim.fall(LONG_DEPTH)
        victim.remove()
