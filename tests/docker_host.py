"""A Docker host in a world of its own: dockerd, voldriverd as the plugin `vd`, and two images.

`bb` is busybox with files of an owner of their own in /data and without /mnt; `bbvol` has VOLUME /data too.
Containers have no network. Nothing of the machine's own Docker is touched.
"""

import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.running import CLIENT, DAEMON, Answer, make_mutable, request
from tests.world import Done, World, until

NAME: Final = "vd"
"""The driver's name at docker; its socket is named so."""
PLUGINS: Final = Path("/run/docker/plugins")
KEEP: Final = ("--stop-signal", "KILL")
"""For a container that shall stop at once."""
IDLE: Final = ("sleep", "600")
HELD_S: Final = 125
"""More than dockerd waits for Mount."""
_SOCKET: Final = Path("/run/docker.sock")
_FILES: Final = {"data/one": b"first\n", "data/sub/two": b"second\n"}
_OWNER: Final = (1000, 1001)
_APPLETS: Final = "sh ls cat touch df sleep dd mkdir rm stat id mount true test kill sync find wc cp grep ln tail"
_CALL: Final = re.compile(
    r"call=/(?:Plugin|VolumeDriver)\.(?P<method>\w+) name=(?P<name>.*?) holder=(?P<holder>\S+) status=(?P<status>\d+)$"
)


class Voldriverd:
    """A daemon that serves one driver name in a world; `start` after `stop` or `kill` begins the next one."""

    def __init__(
        self, world: World, base: Path, *, name: str = NAME, config: str = '[embedded]\nsize = "2G"\n'
    ) -> None:
        """Take a directory for root, run directory, configuration and log; nothing is started yet."""
        base.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.root = base / "root"
        self.log_file = base / "log"
        self.api_socket = base / "run" / "api.sock"
        self.plugin_socket = world.root / f"{PLUGINS}/{name}.sock"[1:]
        self._world = world
        self._base = base
        self._pid = 0
        (base / "toml").write_text(f'{config}\n[docker]\nsocket = "{PLUGINS}/{name}.sock"\n')

    @property
    def log(self) -> str:
        """What all daemons of this name have logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def files(self) -> Path:
        """Where the root is seen from outside, with what is mounted there."""
        return self._world.root / str(self.root)[1:]

    def start(self, *prefix: str) -> None:
        """Start and return when both sockets are served; `prefix` goes before the command."""
        before = self.log.count("verb=start")
        places = ["--config", f"{self._base}/toml", "--root", str(self.root), "--run-dir", f"{self._base}/run"]
        argv = [*prefix, sys.executable, "-c", DAEMON, *places, "--log-level", "debug"]
        self._pid = self._world.spawn(argv, log=self.log_file)
        until(lambda: self.log.count("verb=start") > before or self._world.status(self._pid) is not None, "voldriverd")
        assert self._world.status(self._pid) is None, self.log

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._world.send(self._pid, number)

    def stop(self) -> None:
        """End it as systemd does."""
        self.send(signal.SIGTERM)
        self._world.ended(self._pid)

    def kill(self) -> None:
        """End it without a word."""
        self.send(signal.SIGKILL)
        self._world.ended(self._pid)

    def wait(self) -> None:
        """Wait for its end by somebody else's hand."""
        self._world.ended(self._pid)

    @contextmanager
    def killed_at(self, call: str) -> Iterator[None]:
        """Have it killed when one of its threads enters a system call; it must come to that."""
        tracer = self._traced(call, "signal=KILL")
        yield
        self._world.ended(tracer)

    @contextmanager
    def held_at(self, call: str) -> Iterator[None]:
        """Have each of its threads that enters a system call held for two minutes and a bit."""
        tracer = self._traced(call, f"delay_enter={HELD_S}s")
        yield
        self._world.send(tracer, signal.SIGTERM)
        self._world.ended(tracer)

    def _traced(self, call: str, tampering: str) -> int:
        log = self._base / f"strace-{self._pid}"
        tampered = ["--trace", call, "--inject", f"{call}:{tampering}"]
        argv = ["strace", "--follow-forks", "--attach", str(self._pid), *tampered, "--output", "/dev/null"]
        tracer = self._world.spawn(argv, log=log)
        until(lambda: log.exists() and "attached" in log.read_text(), "strace")
        return tracer

    def is_up(self) -> bool:
        """Tell whether it runs."""
        return self._pid != 0 and self._world.status(self._pid) is None

    def plugin(self, method: str, **fields: object) -> Answer:
        """Ask the plugin from outside, where no mount of the world is seen."""
        return request(self.plugin_socket, "POST", f"/{method}", fields)

    def api(self, method: str, path: str, body: object = None) -> Answer:
        """Ask the API."""
        return request(self.api_socket, method, path, body)

    def cli(self, *arguments: str) -> str:
        """Run a command of `voldriver` that succeeds and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "VOLDRIVER_SOCKET": str(self.api_socket)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def row(self, volume: str, *, is_trashed: bool = False) -> dict[str, Any]:
        """Return the resource of a volume."""
        where = f"name={volume}" + ("&state=removed&removed_notnull=1" if is_trashed else "")
        (row,) = self.api("GET", f"/v1/volumes?{where}").body["data"]
        found: dict[str, Any] = row
        return found

    def act(self, action: str, row: dict[str, Any], **fields: object) -> dict[str, Any]:
        """Do an action on a resource, and return what it answers; it must succeed."""
        answer = self.tried(action, row, **fields)
        assert answer.status < 300, answer
        found: dict[str, Any] = answer.body
        return found

    def tried(self, action: str, row: dict[str, Any], **fields: object) -> Answer:
        """Ask for an action on a resource."""
        return self.api("POST", f"/v1/{row['type']}s/{row['id']}/?action={action}", fields)

    def status(self, volume: str) -> dict[str, Any]:
        """Return the Status of a volume."""
        status: dict[str, Any] = self.plugin("VolumeDriver.Get", Name=volume).body["Volume"]["Status"]
        return status

    def holders(self, volume: str) -> int:
        """Return how many holders a volume has."""
        return len(self.status(volume)["holders"])

    def mounted(self) -> set[str]:
        """Return the trees that are mounted."""
        own = f"{self.root}/mounts/"
        table = (self._world.root.parent / "mountinfo").read_text().splitlines()
        return {point.removeprefix(own) for point in (line.split()[4] for line in table) if point.startswith(own)}

    def calls(self, volume: str | None = None) -> list[str]:
        """Return the calls that were made for a volume, or all of them, in their order."""
        found = (_CALL.search(line) for line in self.log.splitlines())
        return [call["method"] for call in found if call and volume in {None, call["name"].strip("'")}]

    def clean(self) -> None:
        """Make the root such that it can be deleted; the world must have ended."""
        make_mutable(self.root / "embedded")


@dataclass(frozen=True, slots=True)
class Host:
    """All three; what a test breaks, `mend` makes whole."""

    world: World
    vd: "Voldriverd"
    dockerd: "Dockerd"

    def mend(self) -> None:
        """Have both daemons run, and no container and no volume; then nothing may be mounted any more."""
        if not self.vd.is_up():
            self.vd.start()
        if not self.dockerd.is_up():
            self.dockerd.start()
        self.dockerd.clean()
        until(lambda: not self.vd.mounted(), "the volumes to be unmounted")


class Dockerd:
    """A dockerd in a world, its data in memory; `start` after `stop` or `kill` begins the next one."""

    def __init__(self, world: World, base: Path) -> None:
        """Take a directory for the log; nothing is started yet."""
        base.mkdir(parents=True, exist_ok=True)
        self.log_file = base / "dockerd.log"
        self._world = world
        self._config = base / "client"
        self.cgroup = f"voldriver-tests-{world.pid}"
        self._pid = 0

    def start(self, *flags: str, data: str = "data") -> None:
        """Start and return when the API is served; with other data it knows no volume and no image."""
        places = (
            f"--data-root=/run/{data}",
            "--exec-root=/run/exec",
            "--pidfile=/run/dockerd.pid",
            f"--host=unix://{_SOCKET}",
        )
        network = ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
        cgroups = ("--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent={self.cgroup}")
        self._pid = self._world.spawn(
            ["dockerd", *places, *network, *cgroups, *flags], log=self.log_file, env={"TMPDIR": "/run"}
        )
        until(self._is_served, "dockerd", within_s=200)

    def stop(self) -> None:
        """End it as systemd does; containers end too, but for those that are kept alive by --live-restore."""
        self._world.send(self._pid, signal.SIGTERM)
        self._world.ended(self._pid)

    def kill(self) -> None:
        """End it without a word; containers go on."""
        self._world.send(self._pid, signal.SIGKILL)
        self._world.ended(self._pid)

    def call(
        self, *arguments: str, stdin: bytes | None = None, program: str = "docker"
    ) -> "subprocess.CompletedProcess[str]":
        """Run the docker client to its end."""
        host = f"unix://{self._world.root}{_SOCKET}"
        done = subprocess.run(
            [program, *arguments],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=200,
            env={**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": str(self._config), "DOCKER_CLI_HINTS": "0"},
        )
        return Done(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run a docker command that succeeds and return what it prints."""
        done = self.call(*arguments, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def refused(self, *arguments: str) -> str:
        """Run a docker command that fails and return why."""
        done = self.call(*arguments)
        assert done.returncode != 0, f"docker {' '.join(arguments)}: {done.stdout}"
        return done.stderr

    def run(self, *arguments: str) -> str:
        """Run a container to its end and return what it prints."""
        return self.docker("run", "--rm", "--network=none", *arguments)

    def keep(self, name: str, *arguments: str, image: str = "bb", command: Sequence[str] = IDLE) -> str:
        """Run a container in the background that does nothing, or a command."""
        return self.docker("run", "--detach", "--network=none", f"--name={name}", *KEEP, *arguments, image, *command)

    def create(self, volume: str, driver: str, **options: str) -> None:
        """Create a volume as the docker client does, without starting one."""
        self._api("POST", "/volumes/create", {"Name": volume, "Driver": driver, "DriverOpts": options})

    def inspect(self, volume: str) -> dict[str, Any]:
        """Return what docker shows of a volume."""
        (found,) = json.loads(self.docker("volume", "inspect", volume))
        shown: dict[str, Any] = found
        return shown

    def volumes(self, *filters: str) -> set[str]:
        """Return the names that docker lists."""
        given = [argument for each in filters for argument in ("--filter", each)]
        return set(self.docker("volume", "ls", "--quiet", *given).split())

    def is_up(self) -> bool:
        """Tell whether it runs."""
        return self._pid != 0 and self._world.status(self._pid) is None

    def remove_containers(self) -> None:
        """Remove every container with its nameless volumes."""
        for container in self._api("GET", "/containers/json?all=1"):
            self._api("DELETE", f"/containers/{container['Id']}?force=1&v=1")

    def clean(self) -> None:
        """Remove every container and volume."""
        self.remove_containers()
        for volume in self._api("GET", "/volumes")["Volumes"] or ():
            self._api("DELETE", f"/volumes/{volume['Name']}")

    def make_images(self) -> None:
        """Make the images `bb` and `bbvol`."""
        tar = image()
        self.docker("import", "-", "bb", stdin=tar)
        self.docker("import", "--change", "VOLUME /data", "-", "bbvol", stdin=tar)

    def leave_no_cgroup(self) -> None:
        """Remove the control groups of containers that were not stopped; the world must have ended."""
        for top in Path("/sys/fs/cgroup").glob(f"**/{self.cgroup}"):
            for group, _, _ in os.walk(top, topdown=False):
                until(functools.partial(_is_removed, group), f"control group {group} to be empty")

    def _is_served(self) -> bool:
        assert self._world.status(self._pid) is None, self.log_file.read_text()[-2_000:]
        try:
            return self._ask("GET", "/_ping").status == 200
        except OSError:
            return False

    def _ask(self, method: str, path: str, body: object = None) -> Answer:
        return request(
            self._world.root / str(_SOCKET)[1:], method, path, body, headers={"Content-Type": "application/json"}
        )

    def _api(self, method: str, path: str, body: object = None) -> Any:
        answer = self._ask(method, path, body)
        assert answer.status < 300, answer
        return answer.body


def _is_removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError:
        return not os.path.exists(directory)
    return True


def image() -> bytes:
    """Return the tar of a root file system with busybox."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox is not installed"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for member, data in _members(Path(busybox).read_bytes()):
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _members(busybox: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    yield _member("bin", mode=0o755, kind=tarfile.DIRTYPE), b""
    yield _member("bin/busybox", mode=0o755, size=len(busybox)), busybox
    for applet in _APPLETS.split():
        yield _member(f"bin/{applet}", kind=tarfile.SYMTYPE, linkname="busybox"), b""
    for directory in ("data", "data/sub"):
        yield _member(directory, mode=0o750, owner=_OWNER, kind=tarfile.DIRTYPE), b""
    for name, data in _FILES.items():
        yield _member(name, owner=_OWNER, size=len(data)), data


def _member(
    name: str,
    *,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    kind: bytes = tarfile.REGTYPE,
    linkname: str = "",
    size: int = 0,
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.type, member.linkname, member.size = mode, kind, linkname, size
    member.uid, member.gid = owner
    return member
