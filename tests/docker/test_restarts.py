"""Both daemons stopped, killed and started with containers running (the cases A31 to A40)."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.docker_host import NAME, Dockerd, Voldriverd
from tests.scratch import loops_under
from tests.world import until

pytestmark = [pytest.mark.root, pytest.mark.docker]

ON_OURS = ("--volume-driver", NAME)
KILLS_MAX = 5
WRITER = "n=0; while sleep 0.01; do n=$((n+1)); echo $n >>/mnt/log || echo $n >>/lost; done"


@pytest.fixture
def live_restore(dockerd: Dockerd) -> Iterator[None]:
    """Run dockerd with --live-restore."""
    dockerd.stop()
    dockerd.start("--live-restore")
    yield
    dockerd.clean()
    dockerd.stop()


def create(dockerd: Dockerd, name: str, driver: str) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "-o", f"driver={driver}", "--label", "tier=gold", name)


def trees_on_loops(vd: Voldriverd) -> list[str]:
    return [backing for backing in loops_under(vd.root).values() if "/trees/" in backing]


def is_running(dockerd: Dockerd, container: str) -> bool:
    return dockerd.docker("inspect", "-f", "{{.State.Running}}", container) == "true"


def lines(dockerd: Dockerd, container: str) -> int:
    return int(dockerd.docker("exec", container, "wc", "-l", "/mnt/log").split()[0])


def assert_nothing_lost(dockerd: Dockerd, container: str) -> None:
    """Compare what a writer wrote with what it counted: 1, 2, 3 …, without a gap."""
    written = dockerd.docker("exec", container, "cat", "/mnt/log").split()
    assert written == [str(number + 1) for number in range(len(written))]
    dockerd.docker("exec", container, "test", "!", "-e", "/lost")


def test_a31_a_container_comes_back_with_its_data_after_a_restart_of_dockerd(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, driver)
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", "--restart=always")
    dockerd.docker("exec", f"{name}-c", "sh", "-c", "echo kept >/mnt/file")
    dockerd.stop()
    assert vd.mounted() == set()
    dockerd.start()
    until(lambda: is_running(dockerd, f"{name}-c"), "the container to be back")
    assert dockerd.docker("exec", f"{name}-c", "cat", "/mnt/file") == "kept"
    assert (vd.holders(name), dockerd.inspect(name)["Labels"]) == (1, {"tier": "gold"})


@pytest.mark.usefixtures("live_restore")
def test_a32_a_container_keeps_its_mount_while_dockerd_is_away(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, driver)
    container = f"{name}-c"
    dockerd.keep(container, "-v", f"{name}:/mnt", command=("sh", "-c", WRITER))
    until(lambda: lines(dockerd, container), "the writer to begin")
    mounts = vd.calls(name).count("Mount")
    dockerd.stop()
    assert len(vd.mounted()) == 1
    dockerd.start("--live-restore")
    before = lines(dockerd, container)
    until(lambda: lines(dockerd, container) > before, "the writer to go on")
    assert_nothing_lost(dockerd, container)
    assert vd.calls(name).count("Mount") == mounts
    dockerd.docker("stop", container)
    until(lambda: not vd.mounted(), "the volume to be unmounted")
    assert vd.holders(name) == 0


def test_a34_after_a_kill_of_dockerd_the_container_is_back_and_the_volume_goes_with_the_last_one(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.keep(f"{name}-a", "-v", f"{name}:/mnt", *ON_OURS, "--restart=always")
    dockerd.keep(f"{name}-b", "-v", f"{name}:/mnt")
    dockerd.docker("exec", f"{name}-a", "sh", "-c", "echo kept >/mnt/file")
    dockerd.kill()
    dockerd.start()
    until(lambda: is_running(dockerd, f"{name}-a"), "the container to be back")
    assert dockerd.docker("exec", f"{name}-a", "cat", "/mnt/file") == "kept"
    assert "in use" in dockerd.refused("volume", "rm", name)
    dockerd.docker("rm", "-f", f"{name}-a", f"{name}-b")
    until(lambda: dockerd.call("volume", "rm", name).returncode == 0, "the volume to be removed")
    assert vd.mounted() == set()


def test_a35_a_container_writes_on_while_voldriverd_is_killed_and_started(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, driver)
    container = f"{name}-c"
    dockerd.keep(container, "-v", f"{name}:/mnt", command=("sh", "-c", WRITER))
    until(lambda: lines(dockerd, container), "the writer to begin")
    loops, trees = trees_on_loops(vd), vd.mounted()
    vd.kill()
    before = lines(dockerd, container)
    until(lambda: lines(dockerd, container) > before, "the writer to go on")
    vd.start()
    assert dockerd.inspect(name)["Labels"] == {"tier": "gold"}
    assert dockerd.volumes() == {name}
    dockerd.keep(f"{name}-d", "-v", f"{name}:/mnt")
    assert (trees_on_loops(vd), vd.mounted(), vd.holders(name)) == (loops, trees, 2)
    assert_nothing_lost(dockerd, container)
    dockerd.docker("rm", "-f", container, f"{name}-d")
    until(lambda: not vd.mounted() and not trees_on_loops(vd), "the volume to be unmounted")
    dockerd.docker("volume", "rm", name)


def kill_under(vd: Voldriverd, dockerd: Dockerd, call: str, *command: str, again: tuple[str, ...]) -> None:
    """Kill voldriverd at a system call and start it again while docker does something, which fails.

    If it does not the call was another one: the copy of its catalogue is written within a second of any change. Then
    docker does `again`, and all is done again.
    """
    for _ in range(KILLS_MAX):
        with vd.killed_at(call), ThreadPoolExecutor(1) as thread:
            asked = thread.submit(dockerd.call, *command)
            vd.wait()
            vd.start()
            if asked.result().returncode != 0:
                return
        dockerd.docker(*again)
    pytest.fail(f"{command} went on {KILLS_MAX} times")


@pytest.mark.parametrize("call", ["fdatasync", "mount"])
def test_a37_a_container_that_voldriverd_was_killed_under_starts_when_asked_again(
    vd: Voldriverd, dockerd: Dockerd, name: str, call: str
) -> None:
    command = ("run", "--rm", "--network=none", "-v", f"{name}:/mnt", *ON_OURS, "bb", "touch", "/mnt/file")
    kill_under(vd, dockerd, call, *command, again=("volume", "rm", name))
    assert dockerd.volumes() <= {name}
    dockerd.docker(*command)
    assert (vd.status(name)["state"], vd.holders(name)) == ("inactive", 0)


def test_a37_a_removal_that_voldriverd_was_killed_under_succeeds_when_asked_again(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    make = ("volume", "create", "-d", NAME, name)
    dockerd.docker(*make)
    kill_under(vd, dockerd, "fdatasync", "volume", "rm", name, again=make)
    dockerd.docker("volume", "rm", "-f", name)  # it may be done, and dockerd knows nothing of volumes that are gone
    assert dockerd.volumes() == set()


def test_a_container_waits_for_a_voldriverd_that_starts_two_seconds_later(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    vd.stop()
    with ThreadPoolExecutor(1) as thread:
        begun_s = time.monotonic()
        running = thread.submit(dockerd.run, "-v", f"{name}:/mnt", *ON_OURS, "bb", "touch", "/mnt/file")
        until(lambda: running.done() or time.monotonic() - begun_s > 2, "two seconds")
        vd.start()
        running.result()
    assert time.monotonic() - begun_s < 15, "when dockerd gives up"


def test_a38_nothing_waits_for_a_voldriverd_that_was_stopped(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    vd.stop()
    dockerd.stop()
    dockerd.start(data="fresh")  # one that has used the driver waits for it 15 s, with or without a socket
    dockerd.make_images()
    begun_s = time.monotonic()
    dockerd.docker("volume", "create", f"{name}-local")
    dockerd.run("-v", f"{name}-new:/x", "bb", "true")
    assert dockerd.volumes() == {f"{name}-local", f"{name}-new"}
    assert time.monotonic() - begun_s < 10, "15 s would be its wait for a plugin"
    dockerd.stop()
