"""The verbs in any order against a model, on each real driver: the short form of `scripts/torture machine`."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.torture import machine
from tests.torture.bench import KINDS, Kind, Places, places_in_memory

pytestmark = pytest.mark.root

SEED: Final = 1
EXAMPLES: Final = 8


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with places_in_memory(tmp_path_factory.mktemp("machine")) as places:
        yield places


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_verbs_in_any_order_do_what_the_model_says(kind: Kind, places: Places) -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown with a failure
    machine.run(kind, places, seed=SEED, examples=EXAMPLES)
