"""`voldriver doctor` beside real dockerds: one that sees what is mounted here, and one that does not."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.doctors import Diagnosis
from tests.running import CLIENT
from tests.world import World, until

pytestmark = [pytest.mark.root, pytest.mark.docker]

NETWORK = ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")


class Hospital:
    """A world with a root that has a place to mount at, and the doctor in it."""

    def __init__(self, world: World, base: Path) -> None:
        self._world = world
        self._base = base
        self._log = base / "log"
        (base / "root" / "mounts").mkdir(parents=True)

    def dockerd(self, *prefix: str) -> int:
        """Start one, and return its pid inside when it runs."""
        name = f"d{len(list(self._base.iterdir()))}"
        (self._base / name).touch()
        places = (f"--data-root=/run/{name}", f"--exec-root=/run/{name}x", f"--pidfile=/run/{name}.pid")
        host = f"--host=unix:///run/{name}.sock"
        argv = [*prefix, "dockerd", *places, host, *NETWORK]
        pid = self._world.spawn(argv, log=self._log, env={"TMPDIR": "/run"})
        comm = self._world.root / "proc" / str(pid) / "comm"
        until(lambda: comm.read_text() == "dockerd\n", "dockerd")
        return pid

    def stop(self, pid: int) -> None:
        self._world.stop(pid)

    @contextmanager
    def without_place(self) -> Iterator[None]:
        """Have no directory of mount points for the block."""
        (self._base / "root" / "mounts").rmdir()
        yield
        (self._base / "root" / "mounts").mkdir()

    def look(self) -> Diagnosis:
        """Look at propagation alone."""
        places = ["--root", str(self._base / "root"), "--run-dir", "/run/voldriver-test"]
        done = self._world.run(sys.executable, "-c", CLIENT, "--json", "doctor", "propagation", *places)
        assert done.stdout, done.stderr
        answer = json.loads(done.stdout)
        assert list((self._base / "root").glob("mounts/*")) == [], "no probe is left"
        return Diagnosis(done.returncode, answer["findings"], answer["mended"])


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    world = World()
    yield Hospital(world, tmp_path)
    world.close()


def test_whether_dockerd_sees_our_mounts_is_tried(hospital: Hospital) -> None:
    none = hospital.look()
    assert (none.status, none.of("note")) == (0, ["no dockerd"])

    near = hospital.dockerd()
    with hospital.without_place():
        assert (hospital.look().status, hospital.look().of("note")) == (0, ["not tried"])
    assert (hospital.look().status, hospital.look().of("ok")) == (
        0,
        [f"dockerd (pid {near}) sees what is mounted here"],
    )

    apart = hospital.dockerd("unshare", "--mount", "--propagation", "private")
    both = hospital.look()
    assert both.status == 1
    assert both.of("bad") == [f"dockerd (pid {apart}) does not see it"]
    assert both.of("ok") == [f"dockerd (pid {near}) sees what is mounted here"]
    assert "PrivateMounts" in next(each["remedy"] for each in both.findings if each["level"] == "bad")

    hospital.stop(near)
    hospital.stop(apart)
