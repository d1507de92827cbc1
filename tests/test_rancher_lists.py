"""Lists of snapshots: what the store finds is what the filters mean, for whatever is asked, of very many too."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voldriverd import model
from voldriverd.api.rancher import filters, schemas, searches, snapshots
from voldriverd.model import PoolId, SnapshotId, SnapshotState, VolumeId, VolumeState
from voldriverd.store import Store
from voldriverd.store import rows as store_rows

MANY = 100_000
VOLUMES = 1_000
NOW = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)
TEXTS = [None, "a", "A", "ab", "a%b", "a_b", "a*b", "a?b", "a[b]", "é", "x\ny", "In Progress", "10", "9"]
STATES = [VolumeState.INACTIVE, VolumeState.REMOVED, VolumeState.PURGED, VolumeState.REVERTING]


def volume(number: int, state: VolumeState = VolumeState.INACTIVE) -> model.Volume:
    is_gone = state in {VolumeState.REMOVED, VolumeState.PURGED}
    return model.Volume(
        id=VolumeId(number),
        uuid=f"uuid-{number}",
        name=f"v{number}",
        description=None,
        pool_id=PoolId(1),
        driver="btrfs",
        key=None,
        content=1,
        state=state,
        size_bytes=None,
        options={},
        labels={},
        is_protected=False,
        created_at=NOW,
        removed_at=NOW + timedelta(days=number) if is_gone else None,
        destroy_at=NOW + timedelta(days=9) if state is VolumeState.REMOVED else None,
    )


def snapshot(number: int) -> model.Snapshot:
    state = (SnapshotState.CREATED, SnapshotState.CREATED, SnapshotState.CREATING, SnapshotState.REMOVED)[number % 4]
    return model.Snapshot(
        id=SnapshotId(number),
        uuid=f"uuid-{number * 7 % 60:03}",
        volume_id=VolumeId(1 + number % len(STATES)),
        name=f"{TEXTS[number % len(TEXTS)]}{number}" if number % 3 else None,
        description=TEXTS[number % len(TEXTS)],
        key=None,
        state=state,
        is_automatic=number % 5 == 0,
        size_bytes=(None, 0, 1 << 40)[number % 3],
        created_at=NOW + timedelta(seconds=number * 13 % 60 / 4),
        expires_at=NOW + timedelta(days=number % 7) if number % 2 else None,
        removed_at=NOW + timedelta(hours=number) if state is SnapshotState.REMOVED else None,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = filled(tmp_path_factory.mktemp("few"), [volume(n + 1, state) for n, state in enumerate(STATES)], 60)
    yield opened
    opened.close()


def filled(root: Path, volumes: list[model.Volume], count: int) -> Store:
    """Return a store of some volumes, and snapshots that are spread over them."""
    opened = Store(root)
    opened.commit(lambda write: write.add_pool(model.Pool(PoolId(1), "u", "p", "btrfs", "/p")))

    def fill(write: Any) -> None:
        for each in volumes:
            write.put_volume(each)
        for number in range(1, count + 1):
            write.put_snapshot(snapshot(number))

    opened.commit(fill)
    return opened


def found(store: Store, query: list[tuple[str, str]], offset: int = 0, limit: int = 1_000) -> list[int]:
    wish = filters.parse(schemas.SNAPSHOT, query)
    return [each.id for each in store.search_snapshots(searches.search(wish, offset, limit))]


def meant(store: Store, query: list[tuple[str, str]]) -> list[int]:
    """Find the same by looking at each snapshot as it is shown."""
    wish = filters.parse(schemas.SNAPSHOT, query)
    service: Any = SimpleNamespace(store=store)
    rows = store.search_snapshots(searches.search(filters.Wish(shows_removed=True), 0, 60))
    shown = [{"id": snapshots._identify(row), **snapshots._show(service, row)} for row in rows]
    if not wish.has_removed:
        shown = [each for each in shown if each["state"] != "removed"]
    for condition in wish.conditions:
        shown = [each for each in shown if filters.holds(schemas.SNAPSHOT, condition, each)]
    if wish.sort is not None:
        shown.sort(key=filters.sort_key(schemas.SNAPSHOT, wish.sort), reverse=wish.is_descending)
    return [int(each["id"].removeprefix("1s")) for each in shown]


NAMES = [
    f"{name}{'_' if modifier else ''}{modifier}"
    for name, modifiers in schemas.SNAPSHOT.filters().items()
    for modifier in ("", *modifiers)
]
WORDS = [
    *(text for text in TEXTS if text is not None),
    *("", "%", "_", "a%", "%b", "[", "*", "\0", "\ud800", "1v1", "1v2", "3", "1s7", "snapshot", "1a1"),
    *("true", "false", "created", "creating", "removed", "yes", "no", "0", str(1 << 40), "uuid-007"),
    *(NOW.isoformat(), "2026-01-02T03:04:09Z", "2026-01-05T03:04:05Z", "1767323050000", "0001-01-01", "-1"),
]
VALUES = st.sampled_from(WORDS) | st.text(max_size=3)


@pytest.mark.parametrize("name", NAMES)
def test_the_store_finds_what_each_filter_means(store: Store, name: str) -> None:
    assert [value for value in WORDS if found(store, [(name, value)]) != meant(store, [(name, value)])] == []


@settings(max_examples=200, deadline=None)
@given(
    conditions=st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=2),
    sort=st.sampled_from([None, *schemas.SNAPSHOT.filters()]),
    order=st.sampled_from(["asc", "desc"]),
    removed=st.booleans(),
)
def test_the_store_finds_what_the_filters_mean(
    store: Store, conditions: list[tuple[str, str]], sort: str | None, order: str, *, removed: bool
) -> None:
    query = [
        *conditions,
        *([("sort", sort), ("order", order)] if sort else []),
        *([("_removed", "")] if removed else []),
    ]
    assert found(store, query) == meant(store, query)


def test_pages_are_parts_of_the_whole(store: Store) -> None:
    query = [("sort", "description"), ("order", "desc"), ("_removed", "")]
    whole = found(store, query)
    assert [each for offset in range(0, 60, 7) for each in found(store, query, offset, 7)] == whole
    assert len(whole) == 60


# Very many


LIMIT_MS = 20.0


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    rows = [volume(number) for number in range(1, VOLUMES + 1)]
    opened = filled(tmp_path_factory.mktemp("many"), rows, 0)
    values = store_rows.snapshot_values(replace(snapshot(4), state=SnapshotState.CREATED, removed_at=None, name=None))
    copies = ((number, f"uuid-{number}", 1 + number % VOLUMES, *values[3:]) for number in range(1, MANY + 1))
    query = f"INSERT INTO snapshots VALUES ({', '.join('?' * len(values))})"
    opened.commit(lambda write: write._connection.executemany(query, copies))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "query",
    [
        [],
        [("sort", "id"), ("order", "desc")],
        [("volumeId", "1v7")],
        [("volumeId", "1v7"), ("sort", "created")],
        [("volumeId", "1v7"), ("state", "created")],
    ],
    ids=str,
)
def test_a_page_of_many_takes_no_longer_than_a_page(many: Store, query: list[tuple[str, str]]) -> None:
    times_ms = []
    for _ in range(9):
        begun_s = time.perf_counter()
        rows = found(many, query, 0, 101)
        times_ms.append((time.perf_counter() - begun_s) * 1e3)
    assert len(rows) >= 100
    assert median(times_ms) < LIMIT_MS, times_ms
