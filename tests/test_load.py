"""The short forms of `scripts/torture soak` and `scripts/torture scale`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.torture import scale
from tests.torture.bench import Places, places_in_memory
from tests.torture.crowd import BACKUP_VERBS, VERBS
from tests.torture.soak import Soak

pytestmark = pytest.mark.root

SEED: Final = 1
TIME_S: Final = 8.0
VOLUMES: Final = 8


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with places_in_memory(tmp_path_factory.mktemp("soak")) as places:
        yield places


def test_a_soak_leaves_the_daemon_with_what_it_held_before(places: Places) -> None:
    soak = Soak(places, seed=SEED)
    soak.run(time_s=TIME_S)
    assert soak.done.keys() <= {*VERBS, *BACKUP_VERBS}
    assert soak.done.total() > 50
    assert {"back_up", "snapshot", "mount"} <= soak.done.keys()


def test_a_host_is_filled_with_rows_and_trees_and_every_verb_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(scale, "RATIO_MAX", 100.0)  # times mean something on a quiet machine only
    said: list[str] = []
    ratios = scale.Scale(tmp_path / "scale", seed=SEED).run(time_s=600.0, say=said.append, volumes=VOLUMES)
    verbs = {"create", "mount", "snapshot", "get", "list page", "unmount", "remove", "purge"}
    assert ratios.keys() == {*verbs, "kernel: subvolume and commit", "kernel: snapshot"}
    assert f"{VOLUMES} volumes and {VOLUMES * scale.SNAPSHOTS_EACH} snapshots, {VOLUMES * 11} trees" in said[0]
