"""A host where nothing of ours has been yet, for commands that stand in documents: they run with the paths they name.

A World whose `/etc`, `/var/lib`, `/mnt` and `/srv` are its own too, in which the checkout's programs are on the PATH.
There is no systemd in it: `systemctl` is a script that starts and stops the daemon, and knows nothing else.
"""

import io
import os
import shutil
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest

from tests.docker_host import Dockerd
from tests.docs import CHECKOUT, Step, follow
from tests.running import make_mutable
from tests.world import Done, World, until

ROOT: Final = Path("/var/lib/voldriver")
SMALL: Final = '[embedded]\nsize = "1G"\n'
"""What the machines of tests have room for; a page that says nothing of sizes is not changed by it."""
STOP: Final = "systemctl stop voldriverd.socket voldriverd-api.socket voldriverd.service"
_OVERLAID: Final = (Path("/etc"), Path("/var/lib"))
_EMPTY: Final = ("/etc/docker", "/mnt", "/srv")
_SYSTEMCTL: Final = """#!/bin/bash
# The units of voldriverd where there is no systemd. Anything but these requests fails.
log={log}
running() {{ [ -s /run/pid ] && kill -0 "$(cat /run/pid)" 2>/dev/null; }}
begin() {{
    running && return
    setsid voldriverd </dev/null >>$log 2>&1 &
    echo $! >/run/pid
    for _ in $(seq 300); do
        [ -S /run/voldriver/api.sock ] && return
        running || exit 1
        sleep 0.05
    done
    exit 1
}}
end() {{
    running && kill "$(cat /run/pid)"
    while running; do sleep 0.02; done
}}
case "$*" in
"start voldriverd") begin ;;
"restart voldriverd") end; begin ;;
"stop voldriverd.socket voldriverd-api.socket voldriverd.service") end ;;
"is-active voldriverd") running && echo active ;;
"start docker" | "stop docker") ;;
*) echo "systemctl here does not know: $*" >&2; exit 1 ;;
esac
"""


class DocsHost:
    """One such host; `close` ends everything in it and leaves nothing."""

    def __init__(self, base: Path) -> None:
        """Take a directory for all that it keeps; dockerd is started, the daemon is not."""
        self.base = base
        self.world = World()
        self.log_file = base / "voldriverd.log"
        self._bin = base / "bin"
        self.dockerd = Dockerd(self.world, base)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def follow(self, of: list[Step]) -> None:
        """Run the steps of a page; all must be as they stand there."""
        follow(of, self.run)

    def run(self, script: str) -> str:
        """Run a script of bash as root in the checkout and return what it prints."""
        done = self._bash(script)
        return done.stdout + done.stderr

    def must(self, script: str) -> str:
        """Run a script that succeeds to its end, and return what it prints."""
        done = self._bash(f"set -eo pipefail\n{script}")
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}\n{self.log}"
        return done.stdout

    def spawn(self, *argv: str) -> int:
        """Start what a page has started in a terminal of its own, in the checkout; its pid inside."""
        command = f'cd {CHECKOUT}; exec "$@"'
        return self.world.spawn(["bash", "-c", command, "bash", *argv], log=self.log_file)

    @property
    def log(self) -> str:
        """What daemons have said here."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def served(self, pid: int) -> None:
        """Wait until a daemon that was spawned serves and says so."""
        until(lambda: "voldriverd is serving" in self.log or self.world.status(pid) is not None, "voldriverd")
        assert self.world.status(pid) is None, self.log

    def end(self, pid: int) -> int:
        """End a process as Ctrl-C does, and return its status."""
        self.world.send(pid, signal.SIGINT)
        return self.world.ended(pid)

    def begin(self, config: str = SMALL) -> None:
        """Configure and start the daemon."""
        self.configure(config)
        self.must("systemctl start voldriverd")

    def configure(self, config: str) -> None:
        """Write the configuration."""
        (self.world.root / "etc/voldriver/voldriver.toml").write_text(config)

    def empty(self) -> None:
        """Make it as it was: no daemon, no container, no volume, and nothing where they were."""
        self.run("systemctl start voldriverd")  # without the plugin, docker takes 15 s to forget its volumes
        self.dockerd.clean()
        self.run(
            f"{STOP}\numount $(grep -oE ' ({ROOT}|/srv)/[^ ]+' /proc/mounts | tac); chattr -i {ROOT}/embedded\n"
            f"rm -rf {ROOT} /srv/* /mnt/*; docker image rm -f app"
        )
        assert not self.run(f"ls -d {ROOT} /srv/* /mnt/* 2>/dev/null")

    def close(self) -> None:
        """Leave nothing."""
        self.world.close()
        make_mutable(self._upper(ROOT.parent) / ROOT.name / "embedded")
        self.dockerd.leave_no_cgroup()

    def _prepare(self) -> None:
        for place in _OVERLAID:
            upper = self._upper(place)
            work = upper.with_name("work")
            upper.mkdir(parents=True)
            work.mkdir()
            os.mknod(upper / ROOT.name, stat.S_IFCHR, os.makedev(0, 0))  # a whiteout of what this host's daemon has
            options = f"lowerdir={place},upperdir={upper},workdir={work}"
            self._must("mount", "-t", "overlay", "overlay", "-o", options, str(place))
        self._must("mkdir", "-p", "/etc/voldriver", *_EMPTY)
        for empty in _EMPTY:
            self._must("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", empty)
        self._bin.mkdir()
        systemctl = self._bin / "systemctl"
        systemctl.write_text(_SYSTEMCTL.format(log=self.log_file))
        systemctl.chmod(0o755)
        self.dockerd.start()
        self.dockerd.docker("import", "-", "busybox", stdin=busybox())

    def _bash(self, script: str) -> Done:
        path = f"{self._bin}:{CHECKOUT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return self.world.run("bash", "-c", f"cd {CHECKOUT}\n{script}", env={"PATH": path, "DOCKER_CLI_HINTS": "0"})

    def _upper(self, place: Path) -> Path:
        """Return where what is written below an overlaid directory lies."""
        return self.base / place.name / "upper"

    def _must(self, *argv: str) -> None:
        done = self.world.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stderr}"


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DocsHost]:
    """Give a module one host; it takes this name and `host` over as its own."""
    with DocsHost(tmp_path_factory.mktemp("docs") / "host") as host:
        yield host
        assert "Traceback" not in host.log, host.log


@pytest.fixture
def host(one_host: DocsHost) -> Iterator[DocsHost]:
    """Give a test the host of its module, where nothing has been."""
    yield one_host
    one_host.empty()


def busybox() -> bytes:
    """Return the tar of an image as Docker Hub's busybox: every applet, /tmp, and no more."""
    program = shutil.which("busybox")
    assert program is not None, "busybox is not installed"
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.add(program, "bin/busybox")
        for applet in applets:
            if applet != "busybox":
                member = tarfile.TarInfo(f"bin/{applet}")
                member.type, member.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(member)
        scratch = tarfile.TarInfo("tmp")
        scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(scratch)
    return content.getvalue()
