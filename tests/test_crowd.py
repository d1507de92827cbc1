"""Many clients on the same few volumes: the short form of `scripts/torture crowd`."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.running import Running
from tests.torture.bench import Places, daemon_config, places_in_memory
from tests.torture.crowd import NAME, VERBS, Crowd

pytestmark = pytest.mark.root

SEED: Final = 1
TIME_S: Final = 4.0


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with places_in_memory(tmp_path_factory.mktemp("crowd")) as places:
        yield places


def test_clients_on_the_same_volumes_are_served_or_told_why_not_and_nothing_is_left(places: Places) -> None:
    with Running(places.base / NAME, config=daemon_config(places, NAME)) as daemon:
        crowd = Crowd(daemon, seed=SEED)
        crowd.run(places, time_s=TIME_S)
    assert crowd.done.keys() <= set(VERBS)
    assert crowd.done.total() > 50
