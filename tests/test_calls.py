"""Calls that fail and calls that are the last: the short form of `tests/torture/calls.py`, and what it found once."""

from collections.abc import Iterator

import pytest

from tests.torture import calls
from tests.torture.bench import KINDS, Bench, places_in_memory

pytestmark = pytest.mark.root

VERBS = {"btrfs-quota": "snapshot", "loop": "create", "directory": "receive"}
MOST = 12
FOUND = [
    ("directory", "receive", "fsync"),
    ("btrfs-quota", "resize", "ioctl BTRFS_IOC_SNAP_DESTROY"),
    ("loop", "clone", "fsync"),
    ("loop", "attach", "umount2"),
]
"""The last fsync failed and the key was there; a commit's subvolume stayed in the way of the next one; the first error
was hidden by one of the clean-up."""


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    with places_in_memory(tmp_path_factory.mktemp("calls")) as places:
        made = {}
        try:
            for name in VERBS:
                kind = next(kind for kind in KINDS if kind.name == name)
                made[name] = Bench(kind, places.base / name, places.pools[name] / name)
                calls.prepare(made[name])
            yield made
        finally:
            for bench in made.values():
                bench.vanish()


@pytest.mark.parametrize("kind", VERBS)
def test_a_verb_whose_calls_fail_or_are_its_last_leaves_all_or_nothing_and_says_why(
    benches: dict[str, Bench], kind: str
) -> None:
    done = calls.Done()
    calls.run(benches[kind], calls.verbs(benches[kind])[VERBS[kind]], done, most=MOST)
    assert done.missed == []
    assert done.faults.total() + done.absent == MOST
    assert done.told > 0


@pytest.mark.parametrize(("kind", "verb", "call"), FOUND)
def test_a_call_that_hurt_once_does_not_again(benches: dict[str, Bench], kind: str, verb: str, call: str) -> None:
    done = calls.Done()
    calls.run(benches[kind], calls.verbs(benches[kind])[verb], done, name=call, most=8)
    assert done.missed == []
    assert done.told > 0


def test_a_tool_that_is_killed_or_whose_disk_fails_is_named(benches: dict[str, Bench]) -> None:
    done = calls.Done()
    calls.run_tools(benches["loop"], calls.verbs(benches["loop"])["create"], done, most=6)
    assert done.told == done.faults.total() == 6
