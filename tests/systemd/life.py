"""The life of a volume with everything in it that asks for a right of its own; each step fails if something is lost.

`python -m tests.systemd.life DRIVER` lives it with the daemon that is installed.
"""

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from tests.running import CLIENT, Answer, request
from voldriverd import config as configuration
from voldriverd.kernel import fs

DRIVERS: Final = ("btrfs", "loop", "directory")
_OWNER: Final = (1000, 1001)
_CAPABILITY: Final = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)
"""vfs_cap_data of linux/capability.h: revision 2, effective, CAP_NET_BIND_SERVICE."""


class Daemon(Protocol):
    """One that runs."""

    def plugin(self, method: str, **fields: object) -> Answer:
        """Ask the Docker plugin."""
        ...

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `voldriver`."""
        ...


class Installed:
    """The daemon at the usual places."""

    def plugin(self, method: str, **fields: object) -> Answer:
        """Ask the Docker plugin."""
        return request(configuration.PLUGIN_SOCKET, "POST", f"/{method}", fields)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `voldriver`."""
        return subprocess.run([sys.executable, "-c", CLIENT, *arguments], capture_output=True, text=True, check=False)


def config(targets: Path) -> str:
    """Return a configuration with three pools and a target."""
    targets.mkdir(exist_ok=True, parents=True)
    return f'[embedded]\nsize = "500M"\n[targets.t]\nurl = "file://{targets}"\n'


def live(daemon: Daemon, driver: str) -> None:
    """Create, fill, snapshot, compare, resize, revert, clone, back up, restore into each driver, use, remove."""
    sized = {} if driver == "directory" else {"size": "130M"}
    _create(daemon, "v", driver=driver, **sized)
    with _mounted(daemon, "v") as place:
        _fill(place)
        filled = _seen(place)
        _keep(place / "immutable")
    _cli(daemon, "snapshot", "create", "v", "s")
    with _mounted(daemon, "v") as place:
        _release(place / "immutable")
        (place / "d" / "more").write_text("more")
    assert "d/more" in _cli(daemon, "snapshot", "diff", "v", "s")
    if sized:
        _cli(daemon, "volume", "resize", "v", "140M")
    _cli(daemon, "snapshot", "revert", "v", "s")
    _check(daemon, "v", filled)
    _create(daemon, "copy", **{"from": "v@s"})
    _check(daemon, "copy", filled)
    backup = _cli(daemon, "backup", "create", "v@s").split()[0]
    for other in DRIVERS:
        _create(daemon, f"to-{other}", driver=other, **{"from": f"backup:{backup}"})
        _check(daemon, f"to-{other}", filled)
    _use(daemon, "copy")
    for name in ("v", "copy", *(f"to-{other}" for other in DRIVERS)):
        _ask(daemon, "VolumeDriver.Remove", Name=name)
        _cli(daemon, "volume", "purge", "--yes", name)


def _ask(daemon: Daemon, method: str, **fields: object) -> dict[str, Any]:
    answer = daemon.plugin(method, **fields)
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.body
    return body


def _cli(daemon: Daemon, *arguments: str) -> str:
    done = daemon.cli(*arguments)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def _create(daemon: Daemon, name: str, **options: str) -> None:
    _ask(daemon, "VolumeDriver.Create", Name=name, Opts=options)


@contextmanager
def _mounted(daemon: Daemon, name: str) -> Iterator[Path]:
    place = Path(_ask(daemon, "VolumeDriver.Mount", Name=name, ID="life")["Mountpoint"])
    assert place.is_mount(), f"nothing is mounted at {place}"
    yield place
    _ask(daemon, "VolumeDriver.Unmount", Name=name, ID="life")
    assert not place.is_mount(), f"{place} is still mounted"


def _fill(place: Path) -> None:
    """Make files that only certain rights can read, or make again."""
    (place / "setuid").write_text("x")
    os.chown(place / "setuid", *_OWNER)
    (place / "setuid").chmod(0o6755)
    (place / "capable").write_text("x")
    os.setxattr(place / "capable", "security.capability", _CAPABILITY)
    os.setxattr(place / "capable", "trusted.voldriver-test", b"1")
    (place / "d").mkdir()
    (place / "d" / "secret").write_text("x")
    (place / "d" / "secret").chmod(0)
    for each in (place / "d" / "secret", place / "d"):
        os.chown(each, *_OWNER)
    (place / "d").chmod(0o500)
    os.mknod(place / "block", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (place / "immutable").write_text("x")


def _keep(path: Path) -> None:
    _set_flag(path, fs.FS_IMMUTABLE_FL)


def _release(path: Path) -> None:
    _set_flag(path, 0)


def _set_flag(path: Path, flag: int) -> None:
    with path.open("rb") as file:
        fs.set_flags(file.fileno(), fs.get_flags(file.fileno()) & ~fs.FS_IMMUTABLE_FL | flag)


def _seen(place: Path) -> dict[str, object]:
    """Return what can be seen of each file."""
    return {str(path.relative_to(place)): _look(path) for path in sorted(place.rglob("*"))}


def _look(path: Path) -> object:
    status = path.lstat()
    names = [name for name in os.listxattr(path) if name.startswith(("security.cap", "trusted."))]
    attributes = {name: os.getxattr(path, name) for name in names}
    content = path.read_bytes() if path.is_file() else b""
    return (status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns, attributes, content)


def _check(daemon: Daemon, name: str, filled: dict[str, object]) -> None:
    with _mounted(daemon, name) as place:
        assert _seen(place) == filled, f"{name} is not what it was made from"


def _use(daemon: Daemon, name: str) -> None:
    """See that a process elsewhere, with more capabilities than the daemon, keeps a volume from being removed."""
    with _mounted(daemon, name) as place:
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec cat"]
        holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"there\n"
        assert place.is_mount()
    answer = daemon.plugin("VolumeDriver.Remove", Name=name)
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    assert (answer.status, "it is mounted by cat" in answer.body["Err"]) == (500, True), answer.body


if __name__ == "__main__":
    live(Installed(), sys.argv[1])
