"""A Debian 12 made by debootstrap and booted by systemd-nspawn, with the units, dockerd and this checkout."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.docker_host import image
from tests.running import make_mutable
from tests.systemd import life, units
from tests.world import until

SUITE: Final = "bookworm"
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "python3", "btrfs-progs", "e2fsprogs", "xfsprogs", "mount", "kmod"),
    *("util-linux", "docker.io", "python3-venv"),
)
BOOT_S: Final = 90.0
"""On a machine that other tests load; it was seen to take 3 s."""
_REBOOTED: Final = 133
"""With which systemd-nspawn --keep-unit ends when what it runs wants to be booted again."""
_DOCKER: Final = (
    '{"storage-driver": "vfs", "iptables": false, "bridge": "none", "ip-forward": false, "ip-masq": false,'
    ' "exec-opts": ["native.cgroupdriver=cgroupfs"]}'
)
_CGROUPS: Final = """[Unit]
Before=docker.service
DefaultDependencies=no
After=local-fs.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for each in /sys/fs/cgroup/*; do mount -o remount,bind,rw $each || true; done'
[Install]
WantedBy=sysinit.target
"""
"""systemd-nspawn gives the groups of cgroup v1 for reading only, and dockerd inside writes to them."""


class Machine:
    """One that is up from `__init__` to `close`."""

    def __init__(self, base: Path, *, is_bare: bool = False, bound: tuple[Path, ...] = ()) -> None:
        """Make its root and boot it; a bare one has no daemon yet. `bound` can be read in it at the same place."""
        self.root = base / "machine"
        self.services = ["docker.service", *([] if is_bare else [units.SERVICE.name])]
        """What runs when it is up."""
        self._bound = (units.CHECKOUT, *bound)
        self._log = (base / "console").open("wb")
        _make(self.root)
        if not is_bare:
            _put(self.root)
        self._loop: subprocess.Popen[bytes] | None = None
        self._boot()

    @property
    def leader(self) -> int:
        """Its first process, as the host knows it."""
        assert self._loop is not None
        found = self._loop.pid
        for _ in range(2):  # the shell, systemd-nspawn, systemd
            (found,) = map(int, Path(f"/proc/{found}/task/{found}/children").read_text().split()[:1])
        return found

    def call(self, *argv: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a command inside."""
        inside = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        return subprocess.run([*inside, "--", *argv], input=stdin, capture_output=True, check=False, timeout=200)

    def run(self, *argv: str, stdin: bytes = b"") -> str:
        """Run a command inside that succeeds, and return what it prints."""
        done = self.call(*argv, stdin=stdin)
        assert done.returncode == 0, f"{argv}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode().strip()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit)

    def pid(self) -> int:
        """Return the daemon, as the machine knows it; 0 if it does not run."""
        return int(self.show("voldriverd.service", "MainPID"))

    def pid_outside(self) -> int:
        """Return the daemon, as the host knows it."""
        inside, namespace = str(self.pid()), os.readlink(f"/proc/{self.leader}/ns/pid")
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # it ended
                (numbers,) = [line.split() for line in status.read_text().splitlines() if line.startswith("NSpid:")]
                if numbers[-1] == inside and os.readlink(status.parent / "ns" / "pid") == namespace:
                    return int(status.parent.name)
        raise AssertionError("the daemon does not run")

    def log(self) -> str:
        """Return what the daemon has logged since the boot."""
        return self.run("journalctl", "--boot", "--unit=voldriverd.service", "--no-pager", "--output=cat")

    def wait(self) -> None:
        """Wait until all its services are up."""
        until(self._is_up, "the machine to be up", within_s=BOOT_S, pause_s=0.1)

    def reboot(self) -> None:
        """Shut it down as its operator does, and wait until it is up again."""
        before = self.leader
        self.call("systemctl", "reboot")
        until(lambda: self._is_another(before), "the machine to reboot", within_s=2 * BOOT_S, pause_s=0.1)
        self.wait()

    def close(self) -> None:
        """Shut it down."""
        assert self._loop is not None
        with suppress(subprocess.TimeoutExpired, OSError, ValueError):
            self.call("systemctl", "poweroff")
            self._loop.wait(BOOT_S)
        if self._loop.poll() is None:
            os.kill(self.leader, signal.SIGKILL)
            self._loop.wait(BOOT_S)
        self._log.close()
        make_mutable(self.root / "var/lib/voldriver/embedded")

    def _boot(self) -> None:
        bound = [*map(str, self._bound), *({sys.prefix, sys.base_prefix} - {"/usr"})]
        argv = [
            *("systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--boot", f"--directory={self.root}"),
            *(f"--machine=voldriver-{os.getpid()}", "--capability=all", "--console=pipe", "--bind=/dev/loop-control"),
            *(f"--bind-ro={place}" for place in bound),
        ]
        again = f'while "$@"; [ $? = {_REBOOTED} ]; do :; done'
        open_to_it = {"SYSTEMD_SECCOMP": "0", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
        self._loop = subprocess.Popen(
            ["sh", "-c", again, "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **open_to_it},
        )
        self.wait()

    def _is_up(self) -> bool:
        try:
            done = self.call("systemctl", "is-active", *self.services)
        except ValueError:  # there is no first process yet
            return False
        return done.returncode == 0

    def _is_another(self, leader: int) -> bool:
        try:
            return self.leader != leader
        except (ValueError, OSError):
            return False


def _make(root: Path) -> None:
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    (root / "etc/voldriver").mkdir()
    (root / "etc/docker").mkdir(exist_ok=True)
    (root / "etc/docker/daemon.json").write_text(_DOCKER)
    (root / "etc/systemd/system/cgroups.service").write_text(_CGROUPS)
    (root / "etc/voldriver/voldriver.toml").write_text(life.config(root / "srv/backups").replace(str(root), ""))
    (root / "srv/bb.tar").write_bytes(image())
    _enable(root, "docker.service", "cgroups.service")


def _put(root: Path) -> None:
    """Have it run this checkout as it is."""
    for unit in (units.SERVICE, *units.SOCKETS):
        shutil.copy(unit, root / "usr/lib/systemd/system")
    for kind in ("sysusers.d", "tmpfiles.d"):
        shutil.copy(units.UNITS / kind / "voldriver.conf", root / "usr/lib" / kind)
    for program in ("voldriverd", "voldriver"):
        (root / "usr/bin" / program).symlink_to(Path(sys.prefix) / "bin" / program)
    _enable(root, units.SERVICE.name)


def _enable(root: Path, *services: str) -> None:
    subprocess.run(["systemctl", f"--root={root}", "enable", *services], check=True, capture_output=True)
