"""What goes wrong around us: failing mounts, foreign users, forgotten references, pools away or full (A43 to A52)."""

import functools
import http.server
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.docker_host import NAME, Dockerd, Host, Voldriverd
from tests.running import pools_config
from tests.world import until

pytestmark = [pytest.mark.root, pytest.mark.docker]

ON_OURS: Final = ("--volume-driver", NAME)
Make = Callable[..., Voldriverd]


@pytest.fixture
def another(host: Host, tmp_path: Path) -> Iterator[Make]:
    """Give what makes a second voldriverd with another name and configuration; nothing remembers it afterwards."""
    made: list[Voldriverd] = []

    def make(name: str, config: str) -> Voldriverd:
        made.append(Voldriverd(host.world, tmp_path / name, name=name, config=config))
        return made[-1]

    yield make
    host.dockerd.clean()
    host.dockerd.stop()
    for each in made:
        until(functools.partial(_has_none_mounted, each), "its volumes to be unmounted")
        each.stop()
        host.world.run("umount", str(each.root / "embedded"))
        each.clean()
    host.dockerd.start()


def _has_none_mounted(daemon: Voldriverd) -> bool:
    return not daemon.mounted()


@contextmanager
def tree_aside(vd: Voldriverd, name: str) -> Iterator[None]:
    """Have the tree of a volume missing."""
    target = (vd.files / "by-name" / name).readlink().name
    (tree,) = vd.files.glob(f"embedded/*/trees/{target}")
    tree.rename(vd.files / "embedded" / "aside")
    yield
    (vd.files / "embedded" / "aside").rename(tree)


@contextmanager
def always_failing(path: Path) -> Iterator[None]:
    """Serve a plugin in our place whose database is locked."""

    class Failing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b'{"Err": "the database is locked"}')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()
    path.unlink()


@pytest.mark.parametrize(
    "use",
    [("-v", "{}:/mnt"), ("-v", "{}:/data"), ("-v", "{}:/mnt", "-w", "/mnt/inside")],
    ids=["plain", "copy", "workdir"],
)
def test_a43_a_container_whose_volume_cannot_be_mounted_does_not_run_and_leaves_no_mount(
    vd: Voldriverd, dockerd: Dockerd, name: str, use: tuple[str, ...]
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, name)
    until((vd.files / "by-name" / name).is_symlink, "the link")
    with tree_aside(vd, name):
        text = dockerd.refused("run", "--rm", "--network=none", *(each.format(name) for each in use), "bb", "true")
        assert f"cannot mount volume {name}: its tree is missing from the pool" in text
        assert (vd.holders(name), vd.mounted()) == (0, set())
    dockerd.run(*(each.format(name) for each in use), "bb", "true")


def test_a43_a_container_starts_when_its_volume_can_be_mounted_again(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "-o", f"driver={driver}", name)
    container = dockerd.docker("create", "--network=none", "-v", f"{name}:/mnt", "bb", "touch", "/mnt/file")
    until((vd.files / "by-name" / name).is_symlink, "the link")
    with tree_aside(vd, name):
        assert "its tree is missing" in dockerd.refused("start", "--attach", container)
    dockerd.docker("start", "--attach", container)
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "ls", "/mnt") == "file"


def test_a45_a_volume_that_a_process_outside_docker_shows_is_not_removed(
    host: Host, name: str, driver: str, tmp_path: Path
) -> None:
    vd, dockerd = host.vd, host.dockerd
    dockerd.docker("volume", "create", "-d", NAME, "-o", f"driver={driver}", name)
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    dockerd.docker("exec", f"{name}-c", "sh", "-c", "echo kept >/mnt/file; sync")
    script = f"mount --bind {dockerd.inspect(name)['Mountpoint']} {tmp_path} && echo ready && exec sleep 600"
    user = host.world.spawn(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], log=tmp_path / "log"
    )
    until(lambda: "ready" in Path(f"{tmp_path}/log").read_text(), "the other mount")
    dockerd.docker("rm", "-f", f"{name}-c")
    assert f"sleep (pid {user}) at " in dockerd.refused("volume", "rm", name)
    host.world.stop(user)
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "cat", "/mnt/file") == "kept"
    dockerd.docker("volume", "rm", name)
    assert vd.mounted() == set()


def test_a47_a_volume_in_use_is_kept_although_dockerd_forgot_that_it_is(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "-o", f"driver={driver}", "--label", "tier=gold", name)
    container = dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    vd.stop()
    with always_failing(vd.plugin_socket):
        dockerd.refused("volume", "inspect", name)
    vd.start()
    assert dockerd.inspect(name)["Labels"] is None, "dockerd has forgotten the volume"
    text = dockerd.refused("volume", "rm", name)
    assert f"cannot remove volume {name}: it is mounted by sleep" in text
    assert container[:12] in text
    dockerd.docker("exec", f"{name}-c", "sh", "-c", "echo kept >/mnt/file && cat /mnt/file")


def test_a50_volumes_of_a_pool_that_is_away_are_not_forgotten_and_nothing_is_written_in_its_place(
    host: Host, another: Make, name: str, tmp_path: Path
) -> None:
    dockerd, place, image = host.dockerd, tmp_path / "place", tmp_path / "image"
    place.mkdir()
    host.world.run("truncate", "-s", "64M", str(image))
    host.world.run("mkfs.ext4", "-q", str(image))
    host.world.run("mount", "-o", "loop", str(image), str(place))
    away = another("away", f'reconcile_interval = "1s"\n{pools_config(plain=("directory", place / "pool"))}')
    away.start()
    dockerd.docker("volume", "create", "-d", "away", "--label", "tier=gold", "-o", "label.own=1", name)
    dockerd.run("-v", f"{name}:/mnt", "bb", "sh", "-c", "echo kept >/mnt/file")
    away.stop()
    host.world.run("umount", str(place))
    away.start()
    shown = dockerd.inspect(name)
    assert (shown["Labels"], shown["Options"], shown["Status"]["state"]) == (
        {"tier": "gold"},
        {"label.own": "1"},
        "unavailable",
    )
    assert "pool plain is unavailable" in dockerd.refused(
        "run", "--rm", "--network=none", "-v", f"{name}:/mnt", "bb", "true"
    )
    assert list(place.iterdir()) == []
    host.world.run("mount", "-o", "loop", str(image), str(place))
    until(lambda: dockerd.inspect(name)["Status"]["state"] == "inactive", "the pool to be back")
    assert dockerd.inspect(name)["Labels"] == {"tier": "gold"}
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "cat", "/mnt/file") == "kept"
    host.dockerd.clean()
    away.stop()
    host.world.run("umount", str(place))
    away.start()


def test_a51_no_container_starts_on_the_directory_beneath_a_mount_that_dockerd_does_not_see(
    host: Host, another: Make, name: str, tmp_path: Path
) -> None:
    dockerd = host.dockerd
    hidden = another("hidden", pools_config(plain=("directory", tmp_path / "pool")))
    hidden.start("unshare", "--mount", "--propagation", "private")
    for path in ("/mnt", "/data"):
        text = dockerd.refused(
            "run", "--network=none", "-v", f"{name}:{path}", "--volume-driver", "hidden", "bb", "touch", f"{path}/f"
        )
        assert "lives in another mount namespace" in text
    assert hidden.holders(name) == 0
    assert list((hidden.root / "mounts").glob("*/*")) == []


def test_a52_a_full_pool_refuses_clearly_serves_on_and_is_healed_by_a_removal(
    host: Host, another: Make, name: str
) -> None:
    dockerd, full = host.dockerd, f"{name}-full"
    small = another("small", '[embedded]\nsize = "300M"\n')
    small.start()
    for driver in ("btrfs", "loop", "directory"):
        dockerd.docker("volume", "create", "-d", "small", "-o", f"driver={driver}", f"{name}-{driver}")
    script = "dd if=/dev/zero of=/mnt/fill bs=1M 2>&1; sync"
    assert "No space left on device" in dockerd.run(
        "-v", f"{full}:/mnt", "--volume-driver", "small", "bb", "sh", "-c", script
    )
    for driver in ("btrfs", "loop", "directory"):
        text = dockerd.refused("volume", "create", "-d", "small", "-o", f"driver={driver}", f"{name}-new")
        assert f"pool {driver} has" in text
        assert "below the reserve of 5%" in text
        refused = small.tried("snapshot", small.row(f"{name}-{driver}"), name="now")
        assert refused.status >= 400
        assert "below the reserve" in refused.body["message"]
        dockerd.run("-v", f"{name}-{driver}:/mnt", "bb", "ls", "/mnt")
    assert dockerd.volumes("driver=small") == {full, *(f"{name}-{each}" for each in ("btrfs", "loop", "directory"))}
    dockerd.docker("volume", "rm", full)
    dockerd.docker("volume", "create", "-d", "small", f"{name}-new")
