"""What a container's root leaves in its volume, on each driver, under each verb: nothing outside is seen or changed."""

import os
import random
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.running import Running, pools_config
from tests.scratch import Scratch
from tests.torture import malice
from tests.torture.malice import Canary, Malice, Victim

pytestmark = pytest.mark.root

KINDS: Final = {
    "btrfs": ("btrfs", {}),
    "loop-ext4": ("loop", {"size": "96M"}),
    "loop-xfs": ("loop", {"size": "320M", "fs": "xfs"}),
    "directory": ("directory", {}),
}
_OF_XFS: Final = malice.together("loop", [each for each in malice.MALICES if each.name in {"specials", "flags"}])
CASES: Final = [
    *(pytest.param(kind, malice.together(driver), id=f"{kind}-all") for kind, (driver, _) in KINDS.items()),
    *(pytest.param(kind, malice.deep_malice(), id=f"{kind}-deep") for kind in KINDS),
]
CASES[2] = pytest.param("loop-xfs", _OF_XFS, id="loop-xfs-some")  # each of its mounts takes 0.2 s
NOBODY: Final = 65_534
_WAIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon, its pools, and the canary beside them."""

    daemon: Running
    pools: Path
    canary: Canary

    def victim(self, kind: str) -> Victim:
        driver, options = KINDS[kind]
        return Victim(self.daemon, f"v{uuid.uuid4().hex[:8]}", driver, options, self.canary)

    def trees(self) -> set[str]:
        return {path.name for path in self.pools.glob("*/trees/*")}


@pytest.fixture(scope="module")
def place(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = session_scratch.shared("malice", "btrfs")
    (base / "target").mkdir()
    config = f'reserve = "0%"\n[targets.disk]\nurl = "file://{base}/target"\n'
    config += pools_config(**{name: (name, base / "pools" / name) for name in ("btrfs", "loop", "directory")})
    canary = Canary(base / "canary")
    with Running(tmp_path_factory.mktemp("malice"), config=config) as daemon:
        yield Place(daemon, base / "pools", canary)
        assert "Traceback" not in daemon.log, daemon.log
        assert "internal error" not in daemon.log
    canary.close()


@pytest.mark.parametrize(("kind", "each"), CASES)
def test_no_verb_leaves_the_tree_and_the_volume_can_be_removed(place: Place, kind: str, each: Malice) -> None:
    trees = place.trees()
    victim = place.victim(kind)
    victim.suffer(each)
    assert set(victim.refused) <= each.may_refuse
    victim.remove()
    end_s = time.monotonic() + _WAIT_S
    while place.trees() - trees and time.monotonic() < end_s:
        time.sleep(0.02)
    assert place.trees() <= trees
    victim.check("the end")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["loop-ext4", "loop-xfs"])
def test_a_damaged_image_harms_its_volume_alone(place: Place, kind: str, seed: int) -> None:
    victim = place.victim(kind)
    victim.survive(lambda key: place.pools / "loop" / "trees" / f"{key.removeprefix('1')}.1", random.Random(seed))
    victim.remove()


def test_no_user_of_the_host_comes_near_what_a_container_wrote(place: Place) -> None:
    made = place.daemon.api("POST", "/v1/volumes", {"name": "shell", "driver": "directory"}).body["id"]
    path = Path(place.daemon.api("POST", f"/v1/volumes/{made}?action=activate").body["mountpoint"])
    shutil.copy(shutil.which("id") or "", path / "id")
    (path / "id").chmod(0o4755)
    argv = [f"./{path.relative_to(place.daemon.root)}/id", "-u"]
    assert subprocess.run(argv, cwd=place.daemon.root, capture_output=True, check=True, text=True).stdout == "0\n"
    with pytest.raises(PermissionError):
        subprocess.run(argv, cwd=place.daemon.root, user=NOBODY, group=NOBODY, extra_groups=[], check=True)
    place.daemon.api("POST", f"/v1/volumes/{made}?action=deactivate")


def test_the_canary_sings(place: Place) -> None:
    place.canary.file.read_bytes()
    assert place.canary.touched() != []
    os.listdir(place.canary.directory)
    assert place.canary.touched() != []
    assert place.canary.touched() == []
