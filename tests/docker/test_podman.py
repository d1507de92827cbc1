"""Podman on our volumes, alone and beside docker, and what it makes of our errors (the cases A66 and A67)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docker.test_faults import tree_aside
from tests.docker_host import IDLE, NAME, PLUGINS, Dockerd, Host, Voldriverd, image
from tests.world import Done, World, until

pytestmark = [pytest.mark.root, pytest.mark.docker]

PLACES: Final = ("--root=/run/pod/root", "--runroot=/run/pod/run", "--tmpdir=/run/pod/tmp")
KINDS: Final = ("--runtime=runc", "--cgroup-manager=cgroupfs", "--storage-driver=overlay", "--events-backend=none")


class Podman:
    """Podman in the world of a Docker host, its data in memory."""

    def __init__(self, world: World, base: Path, *, cgroup: str) -> None:
        self._world = world
        self._run = ("run", "--network=none", "--ulimit=host", "--log-driver=none", f"--cgroup-parent={cgroup}")
        self._settings = base / "containers.conf"
        self._settings.write_text(f'[engine.volume_plugins]\n{NAME} = "{PLUGINS}/{NAME}.sock"\n')
        (base / "image.tar").write_bytes(image())
        self("import", str(base / "image.tar"), "bb")

    def call(self, *arguments: str) -> Done:
        """Run podman to its end."""
        env = {"CONTAINERS_CONF": str(self._settings), "TMPDIR": "/run"}
        return self._world.run("podman", *PLACES, *KINDS, *arguments, env=env)

    def __call__(self, *arguments: str) -> str:
        done = self.call(*arguments)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def refused(self, *arguments: str) -> str:
        """Run a podman command that fails and return why."""
        done = self.call(*arguments)
        assert done.returncode != 0, f"podman {' '.join(arguments)}: {done.stdout}"
        return done.stderr

    def create(self, volume: str, *options: str) -> None:
        """Make a volume of ours."""
        self("volume", "create", "--driver", NAME, *options, volume)

    def run(self, *arguments: str) -> str:
        """Run a container to its end and return what it prints."""
        return self(*self._run, "--rm", *arguments)

    def not_run(self, *arguments: str) -> str:
        """Run a container that does not start, and return why."""
        return self.refused(*self._run, "--rm", *arguments)

    def keep(self, name: str, *arguments: str) -> None:
        """Run a container in the background."""
        self(*self._run, "--detach", f"--name={name}", *arguments, "bb", *IDLE)

    def volumes(self) -> set[str]:
        """Return the names that podman knows."""
        return set(self("volume", "ls", "--quiet").split())


@pytest.fixture(scope="module")
def podman(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Podman:
    return Podman(host.world, tmp_path_factory.mktemp("podman"), cgroup=host.dockerd.cgroup)


@pytest.fixture(autouse=True)
def emptied(host: Host, podman: Podman) -> Iterator[None]:
    yield
    podman("rm", "--all", "--force", "--time=0")
    host.dockerd.remove_containers()
    podman("volume", "prune", "--force")


def test_a66_containers_of_podman_share_a_volume_until_the_last_one_stops(
    vd: Voldriverd, podman: Podman, name: str, driver: str
) -> None:
    podman.create(name, "-o", f"driver={driver}")
    assert podman.run("-v", f"{name}:/mnt", "bb", "sh", "-c", "echo kept >/mnt/file; cat /mnt/file") == "kept"
    assert vd.mounted() == set()
    podman.keep(f"{name}-a", "-v", f"{name}:/mnt")
    podman.keep(f"{name}-b", "-v", f"{name}:/mnt")
    podman("rm", "-f", "--time=0", f"{name}-a")
    assert podman("exec", f"{name}-b", "cat", "/mnt/file") == "kept"
    assert (vd.holders(name), len(vd.mounted())) == (1, 1)
    podman("rm", "-f", "--time=0", f"{name}-b")
    assert (vd.holders(name), vd.mounted()) == (0, set())
    podman("volume", "rm", name)
    assert name not in podman.volumes()


def test_a66_a_volume_of_the_plugin_is_known_after_a_reload(dockerd: Dockerd, podman: Podman, name: str) -> None:
    dockerd.docker("volume", "create", "-d", NAME, name)
    podman("volume", "reload")
    assert name in podman.volumes()
    dockerd.docker("volume", "rm", name)
    podman("volume", "reload")
    assert name not in podman.volumes()


def test_a66_docker_and_podman_share_a_volume(
    vd: Voldriverd, dockerd: Dockerd, podman: Podman, name: str, driver: str
) -> None:
    podman.create(name, "-o", f"driver={driver}")
    podman.keep(f"{name}-p", "-v", f"{name}:/mnt")
    dockerd.keep(f"{name}-d", "-v", f"{name}:/mnt")
    assert vd.holders(name) == 2
    dockerd.docker("exec", f"{name}-d", "sh", "-c", "echo shared >/mnt/file")
    dockerd.docker("rm", "-f", f"{name}-d")
    assert len(vd.mounted()) == 1
    assert podman("exec", f"{name}-p", "cat", "/mnt/file") == "shared"
    podman("rm", "-f", "--time=0", f"{name}-p")
    assert (vd.holders(name), vd.mounted()) == (0, set())


def test_a_prune_of_podman_takes_volumes_of_docker_but_for_mounted_and_protected_ones(
    vd: Voldriverd, dockerd: Dockerd, podman: Podman, name: str
) -> None:
    kinds: dict[str, tuple[str, ...]] = {"idle": (), "held": (), "safe": ("-o", "protected=yes")}
    for kind, options in kinds.items():
        dockerd.docker("volume", "create", "-d", NAME, *options, f"{name}-{kind}")
    dockerd.keep(f"{name}-d", "-v", f"{name}-held:/mnt")
    podman("volume", "reload")
    text = podman.refused("volume", "prune", "--force")
    assert f"cannot remove volume {name}-held: it is mounted by sleep" in text
    assert f"cannot remove volume {name}-safe: it is protected" in text
    assert vd.row(f"{name}-idle", is_trashed=True)["state"] == "removed"
    vd.cli("volume", "set", f"{name}-safe", "--no-protected")


def test_podman_fills_a_new_volume_from_the_image(podman: Podman, name: str) -> None:
    podman.create(name)
    assert "/data/one" in podman.run("-v", f"{name}:/data", "bb", "find", "/data", "-type", "f").split()


def test_a67_podman_shows_why_a_volume_is_not_created_and_does_not_know_it(podman: Podman, name: str) -> None:
    text = podman.refused("volume", "create", "--driver", NAME, "-o", "size=banana", name)
    assert "size" in text
    assert "banana" in text
    assert name not in podman.volumes()


def test_a67_podman_shows_why_a_volume_is_not_mounted_and_starts_no_container(
    vd: Voldriverd, podman: Podman, name: str
) -> None:
    podman.create(name)
    until((vd.files / "by-name" / name).is_symlink, "the link")
    with tree_aside(vd, name):
        text = podman.not_run("-v", f"{name}:/mnt", "bb", "touch", "/mnt/file")
    assert f"cannot mount volume {name}: its tree is missing" in text
    assert podman.run("-v", f"{name}:/mnt", "bb", "ls", "-A", "/mnt") == ""


def test_a67_podman_shows_why_a_volume_is_not_removed_and_keeps_it(
    vd: Voldriverd, dockerd: Dockerd, podman: Podman, name: str
) -> None:
    podman.create(name)
    dockerd.keep(f"{name}-d", "-v", f"{name}:/mnt")
    text = podman.refused("volume", "rm", name)
    assert f"cannot remove volume {name}: it is mounted by sleep" in text
    assert name in podman.volumes()
    assert vd.status(name)["state"] == "active"
