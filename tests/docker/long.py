"""What takes minutes, because dockerd waits or holders must age: `pytest tests/docker/long.py` (13 minutes)."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.docker_host import NAME, Dockerd, Voldriverd
from tests.world import until
from voldriverd.engine.mounts import SETTLING_S

pytestmark = [pytest.mark.root, pytest.mark.docker]

ON_OURS: Final = ("--volume-driver", NAME)
DEADLINE_S: Final = 120.0
"""dockerd's for Mount."""
FORGOTTEN_S: Final = SETTLING_S + 60.0 + 10.0
"""When a holder that the kernel does not know is forgotten at the latest: its age, an interval, and some."""


def test_a40_containers_start_and_labels_are_kept_although_voldriverd_came_after_dockerd(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "--label", "tier=gold", name)
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    dockerd.docker("exec", f"{name}-c", "sh", "-c", "echo kept >/mnt/file")
    dockerd.docker("stop", f"{name}-c")
    dockerd.stop()
    vd.stop()
    begun_s = time.monotonic()
    dockerd.start()
    assert time.monotonic() - begun_s < 60, "15 s for the volume, 15 s for the container"
    vd.start()
    dockerd.docker("start", f"{name}-c")
    assert dockerd.docker("exec", f"{name}-c", "cat", "/mnt/file") == "kept"
    assert dockerd.inspect(name)["Labels"] == {"tier": "gold"}


def test_r3_a_get_that_is_lost_with_voldriverd_does_not_make_dockerd_forget_the_volume(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "--label", "tier=gold", name)
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    before = len(vd.calls())
    vd.send(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        showing = thread.submit(dockerd.call, "volume", "inspect", name)
        time.sleep(1)  # it lies in the socket then
        vd.kill()
        vd.start()
        assert showing.result().returncode != 0
    assert set(vd.calls()[before:]) == {"Get"}, "it came again, without its body"
    assert dockerd.inspect(name)["Labels"] == {"tier": "gold"}
    assert "in use" in dockerd.refused("volume", "rm", name)


def test_a42_a_mount_that_dockerd_gave_up_leaves_no_holder_and_no_mount(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, name)
    container = dockerd.docker("create", "--network=none", "-v", f"{name}:/mnt", "bb", "true")
    with vd.held_at("mount"), ThreadPoolExecutor(1) as thread:
        begun_s = time.monotonic()
        starting = thread.submit(dockerd.call, "start", container)
        assert "deadline exceeded" in starting.result().stderr
        assert time.monotonic() - begun_s > DEADLINE_S - 5
    until(lambda: f"verb=unmount volume={name} " in vd.log, "the mount to be taken back")
    assert f"verb=mount volume={name} " in vd.log
    assert (vd.holders(name), vd.mounted()) == (0, set())


def test_the_holder_of_a_container_that_stopped_while_voldriverd_was_away_is_forgotten(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", *ON_OURS)
    vd.kill()
    dockerd.docker("stop", f"{name}-c")
    vd.start()
    assert vd.holders(name) == 1
    until(lambda: vd.holders(name) == 0, "the holder to be forgotten", within_s=FORGOTTEN_S, pause_s=1)
    assert vd.mounted() == set()
    dockerd.docker("start", f"{name}-c")
    assert vd.holders(name) == 1


def test_a34_the_holder_of_a_container_that_died_with_dockerd_is_forgotten(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", *ON_OURS, "--restart=always")
    dockerd.kill()
    dockerd.start()
    until(lambda: vd.calls(name).count("Mount") == 2, "the container to be back")
    dockerd.docker("rm", "-f", f"{name}-c")
    assert vd.holders(name) == 1, "it was mounted twice under its id, and unmounted once"
    until(lambda: vd.holders(name) == 0, "the holder to be forgotten", within_s=FORGOTTEN_S, pause_s=1)
    assert vd.mounted() == set()


def test_a32_the_holder_that_dockerd_forgets_after_a_live_restore_and_a_copy_is_forgotten(
    vd: Voldriverd, dockerd: Dockerd, name: str, tmp_path: Path
) -> None:
    dockerd.stop()
    dockerd.start("--live-restore")
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", *ON_OURS)
    dockerd.stop()
    dockerd.start("--live-restore")
    (tmp_path / "file").write_text("copied")
    dockerd.docker("cp", str(tmp_path / "file"), f"{name}-c:/mnt/file")
    assert dockerd.docker("exec", f"{name}-c", "cat", "/mnt/file") == "copied"
    dockerd.docker("stop", f"{name}-c")
    until(lambda: vd.holders(name) == 0, "the holder to be forgotten", within_s=FORGOTTEN_S, pause_s=1)
    assert vd.mounted() == set()
    dockerd.clean()
    dockerd.stop()


def test_a_voldriverd_that_was_stopped_for_a_while_loses_nothing(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", *ON_OURS)
    vd.send(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(dockerd.docker, "stop", f"{name}-c")
        time.sleep(20)
        vd.send(signal.SIGCONT)
        stopping.result()
    assert (vd.holders(name), vd.mounted()) == (0, set())
