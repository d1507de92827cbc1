"""kill -9 in the middle of verbs: what was acknowledged is true, and nothing is half done."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import Bench, bench_on
from tests.memory import PowerCut
from voldriverd.engine import snapshots
from voldriverd.kernel import mount

pytestmark = pytest.mark.root


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    place = tmp_path / "memory"
    place.mkdir()
    mount.mount("tmpfs", place, fs_type="tmpfs", data="size=64m")
    with bench_on(place) as bench:
        yield bench
    mount.unmount(place)


def test_what_a_cut_verb_has_begun_gives_its_key_to_nobody_else(bench: Bench) -> None:
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.switch.cut_at = len(bench.switch.steps) + 2  # after the commit of begin
    with pytest.raises(PowerCut):
        snapshots.revert(bench.engine, bench.volume("db"), first)
    bench.switch.cut_at = None
    bench.restart()
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("second"))
    snapshots.revert(bench.engine, bench.volume("db"), first)
    bench.upkeep()
    assert bench.driver.trees() == bench.tree_rows()
