"""Backups and restores disturbed at random instants: the short form of `scripts/torture backups`."""

from pathlib import Path

import pytest

from tests.torture.backups import disturbed
from tests.torture.bench import places_in_memory

pytestmark = pytest.mark.root

SEED = 7
"""Each fault in a backup and in a restore is among its rounds."""
ROUNDS = 10


def test_whatever_happens_backups_and_volumes_are_whole(tmp_path: Path) -> None:
    with places_in_memory(tmp_path) as places, disturbed(places, seed=SEED) as disturbing:
        disturbing.run(ROUNDS)
        assert disturbing.checked >= ROUNDS // 2
        assert disturbing.met.total() > 0
