"""The managed plugin: built by `scripts/plugin`, given to a real dockerd, and treated as badly as a service is.

dockerd runs in a world of its own whose mounts are shared, as those of a host under systemd are.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docker_host import Dockerd
from tests.running import make_mutable, request
from tests.world import World, until

pytestmark = pytest.mark.docker

CHECKOUT: Final = Path(__file__).parent.parent
SCRIPT: Final = CHECKOUT / "scripts" / "plugin"
NAME: Final = "voldriver"
DRIVERS: Final = ("btrfs", "loop", "directory")
ROOTFS_MAX_MIB: Final = 300
"""It has 162 MiB with a Python that was built here, and fewer with Debian's."""


def build(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the script."""
    return subprocess.run(
        [sys.executable, SCRIPT, place, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@dataclass(frozen=True)
class Host:
    """A dockerd, and the directories of the plugin."""

    world: World
    dockerd: Dockerd
    root: Path
    built: Path

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Ask the API through the socket in the root directory; it must succeed."""
        answer = request(self.root / "run" / "api.sock", method, path, body)
        assert answer.status < 300, answer
        return answer.body

    def row(self, volume: str) -> dict[str, Any]:
        """Return the resource of a volume."""
        (found,) = self.api("GET", f"/v1/volumes?name={volume}")["data"]
        row: dict[str, Any] = found
        return row

    def mounted(self) -> set[str]:
        """Return the trees that dockerd sees mounted."""
        table = (self.world.root.parent / "mountinfo").read_text().splitlines()
        points = (line.split()[4].partition("/propagated-mount/")[2] for line in table)
        return {point for point in points if point}

    def create(self, volume: str, **options: str) -> None:
        """Create a volume of the plugin."""
        given = [argument for each in options.items() for argument in ("--opt", "=".join(each))]
        self.dockerd.docker("volume", "create", "--driver", NAME, *given, volume)

    def loops(self) -> int:
        """Return how many loop devices there are of the embedded image, wherever it is seen."""
        shown = ["losetup", "--list", "--noheadings", "--output", "BACK-INO,BACK-MAJ:MIN"]
        said = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
        image = (self.root / "embedded.img").stat()
        device = f"{os.major(image.st_dev)}:{os.minor(image.st_dev)}"
        return [line.split() for line in said.splitlines()].count([str(image.st_ino), device])

    def pid(self) -> int:
        """Return the process of the daemon, by its pid in the world."""
        found = self.world.run("pgrep", "--full", "--oldest", "voldriverd-plugin").stdout.split()
        return int(found[0]) if found else 0

    def enable(self) -> None:
        """Start the plugin and wait until it is served."""
        self.dockerd.docker("plugin", "enable", NAME)
        self.wait()

    def wait(self) -> None:
        """Wait until the daemon answers."""
        until(self._answers, "the plugin")

    def _answers(self) -> bool:
        try:
            return request(self.root / "run" / "api.sock", "GET", "/v1/volumes").status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("managed")
    # The check for leaks knows that what lies in a directory of this name outlives a test: here the embedded image.
    root = base / "session-scratch"
    etc, pool, built = base / "etc", base / "pool", base / "plugin"
    for directory in (root, etc, pool):
        directory.mkdir()
    (pool / "here").touch()
    (etc / "voldriver.toml").write_text('[embedded]\nsize = "400M"\n')
    done = build(built, "--root", str(root), "--pool", str(pool))
    assert done.returncode == 0, done.stderr
    world = World()
    dockerd = Dockerd(world, base)
    try:
        assert world.run("mount", "--make-rshared", "/").returncode == 0
        dockerd.start()
        dockerd.make_images()
        dockerd.docker("plugin", "create", NAME, str(built))
        dockerd.docker("plugin", "set", NAME, f"configuration.source={etc}", "LOG_LEVEL=debug")
        found = Host(world, dockerd, root, built)
        found.enable()
        yield found
        assert "Traceback" not in dockerd.log_file.read_text()
    finally:
        world.close()
        dockerd.leave_no_cgroup()
        make_mutable(root / "embedded")


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no container and no volume, and nothing mounted."""
    yield
    if "host" in request.fixturenames:
        host: Host = request.getfixturevalue("host")
        host.dockerd.clean()
        until(lambda: not host.mounted(), "the volumes to be unmounted")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_volume_of_each_driver_keeps_its_data_its_snapshot_and_its_clone(host: Host, driver: str) -> None:
    host.create("vol", driver=driver)
    assert (
        host.dockerd.run("-v", "vol:/mnt", "bb", "sh", "-c", "echo one > /mnt/file; grep -c ' /mnt ' /proc/mounts")
        == "1"
    )
    made = host.api("POST", f"/v1/volumes/{host.row('vol')['id']}/?action=snapshot", {"name": "monday"})
    assert made["name"] == "monday"
    host.dockerd.run("-v", "vol:/mnt", "bb", "sh", "-c", "echo two > /mnt/file")
    host.create("copy", **{"from": "vol@monday"})
    assert host.dockerd.run("-v", "copy:/mnt", "-v", "vol:/new", "bb", "cat", "/mnt/file", "/new/file") == "one\ntwo"
    assert host.dockerd.inspect("vol")["Driver"] == f"{NAME}:latest"


def test_the_files_of_the_image_are_copied_into_a_new_volume(host: Host) -> None:
    assert host.dockerd.run("-v", "fresh:/data", "--volume-driver", NAME, "bb", "cat", "/data/one") == "first"


def test_the_command_line_is_in_the_plugin(host: Host) -> None:
    host.create("vol")
    done = host.world.run("nsenter", "--target", str(host.pid()), "--mount", "voldriver", "volume", "ls")
    assert (done.returncode, "vol " in done.stdout) == (0, True), done.stderr


def test_a_volume_in_use_is_not_removed_and_the_container_is_named(host: Host) -> None:
    host.create("vol")
    container = host.dockerd.keep("one", "-v", "vol:/mnt")
    answer = request(host.root / "run" / "api.sock", "DELETE", f"/v1/volumes/{host.row('vol')['id']}")
    assert answer.status == 405
    assert f"container {container[:12]} at /mnt" in answer.body["message"]
    assert "propagated-mount" not in answer.body["message"], "what dockerd has is no user"


def test_a_daemon_that_is_killed_is_back_and_the_container_did_not_notice(host: Host) -> None:
    host.create("vol", driver="loop")
    host.dockerd.keep("one", "-v", "vol:/mnt", command=("sh", "-c", "echo before > /mnt/file; sleep 600"))
    killed = host.pid()
    assert host.world.run("kill", "-9", str(killed)).returncode == 0
    until(lambda: host.pid() not in {0, killed}, "the next daemon")
    host.wait()
    assert host.dockerd.docker("exec", "one", "sh", "-c", "cat /mnt/file; echo after > /mnt/file") == "before"
    assert host.dockerd.run("-v", "vol:/mnt", "bb", "cat", "/mnt/file") == "after", "both have one file system"
    assert host.loops() == 1


def test_a_container_that_outlives_a_forced_disable_never_gets_an_empty_directory(host: Host) -> None:
    host.create("vol", driver="loop")
    host.dockerd.keep("one", "-v", "vol:/mnt", command=("sh", "-c", "echo before >> /mnt/file; sleep 600"))
    assert f"plugin {NAME}:latest is in use" in host.dockerd.refused("plugin", "disable", NAME)
    host.dockerd.docker("plugin", "disable", "--force", NAME)
    assert host.mounted() == set()
    host.dockerd.docker("exec", "one", "sh", "-c", "echo meanwhile >> /mnt/file")
    host.enable()
    assert host.dockerd.run("-v", "vol:/mnt", "bb", "cat", "/mnt/file") == "before\nmeanwhile"
    assert host.loops() == 1
    host.dockerd.docker("restart", "--time=0", "one")
    until(lambda: host.dockerd.docker("exec", "one", "cat", "/mnt/file") == "before\nmeanwhile\nbefore", "the file")


def test_volumes_outlive_the_plugin_and_dockerd_finds_them_with_the_next_one(host: Host) -> None:
    """What an upgrade is where there is no registry."""
    host.create("vol")
    host.dockerd.run("-v", "vol:/mnt", "bb", "sh", "-c", "echo kept > /mnt/file")
    before = host.row("vol")["uuid"]
    settings = json.loads(host.dockerd.docker("plugin", "inspect", NAME))[0]["Settings"]["Mounts"]
    (etc,) = (each["Source"] for each in settings if each["Name"] == "configuration")
    assert f"plugin {NAME}:latest is in use" in host.dockerd.refused("plugin", "rm", NAME)
    host.dockerd.docker("plugin", "rm", "--force", NAME)
    host.dockerd.docker("plugin", "create", NAME, str(host.built))
    host.dockerd.docker("plugin", "set", NAME, f"configuration.source={etc}")
    host.enable()
    assert host.row("vol")["uuid"] == before
    host.dockerd.stop()  # it knows the volume as one of the plugin that has gone
    host.dockerd.start()
    host.wait()
    assert host.dockerd.run("-v", "vol:/mnt", "bb", "cat", "/mnt/file") == "kept"


# What is built


def test_it_holds_what_it_runs_and_little_else(host: Host) -> None:
    files = [path.lstat() for path in (host.built / "rootfs").rglob("*")]
    assert sum(each.st_blocks * 512 for each in files) >> 20 < ROOTFS_MAX_MIB
    library = host.built / "rootfs" / "usr" / "lib" / "voldriver"
    assert list(library.glob("voldriverd/__pycache__/daemon.*.pyc")), "what is not compiled starts too late"


def test_the_root_and_pools_elsewhere_are_bound_from_the_host(host: Host) -> None:
    config = json.loads((host.built / "config.json").read_text())
    bound = {each["source"]: each["destination"] for each in config["mounts"]}
    pool = str(host.root.with_name("pool"))
    assert bound.items() >= {str(host.root): "/host", pool: pool}.items()
    (daemon,) = (path for path in Path("/proc").glob("[0-9]*/cmdline") if is_daemon(path, host.root))
    assert (daemon.parent / "root" / pool[1:] / "here").exists()


def is_daemon(cmdline: Path, root: Path) -> bool:
    try:
        return f"voldriverd-plugin\0{root}\0" in cmdline.read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--root", "srv"), "'srv' is no absolute path"),
        (("--pool", "/srv/../x"), "'/srv/../x' is no absolute path"),
    ],
)
def test_a_wrong_directory_is_refused_and_nothing_is_made(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = build(tmp_path / "plugin", *arguments)
    assert (done.returncode, message in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    done = build(tmp_path)
    assert (done.returncode, done.stderr) == (1, f"cannot build a plugin: {tmp_path} holds something else\n")
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]


def test_a_python_without_the_libraries_is_told_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, tmp_path / "plugin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is not installed for" in done.stderr
    assert "run scripts/setup" in done.stderr
