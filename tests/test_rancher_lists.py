"""Lists of snapshots and backups: the store finds what the filters mean, whatever is asked, of very many too."""

import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voldriverd import model
from voldriverd.api.rancher import backups, filters, searches, snapshots
from voldriverd.driver import StreamFormat
from voldriverd.model import BackupId, BackupState, PoolId, SnapshotId, SnapshotState, TargetId, VolumeId, VolumeState
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


def target(number: int) -> model.Target:
    return model.Target(
        TargetId(number), f"uuid-{number}", f"t{number}", None, False, f"file:///t{number}", created_at=NOW
    )


def backup(number: int) -> model.Backup:
    state = list(BackupState)[number % len(BackupState)]
    is_known = number % 3 > 0
    return model.Backup(
        id=BackupId(number),
        uuid=f"uuid-{number * 7 % 60:03}",
        target_id=TargetId(1 + number % 2),
        volume_id=VolumeId(1 + number % len(STATES)) if is_known else None,
        volume_uuid=f"uuid-{number % 4}",
        volume_name=f"v{number % 4}",
        snapshot_id=SnapshotId(1 + number) if is_known and number < 60 else None,
        snapshot_uuid="uuid",
        snapshot_name=TEXTS[number % len(TEXTS)],
        name=f"{TEXTS[number % len(TEXTS)]}{number}" if number % 3 else None,
        description=TEXTS[number % len(TEXTS)],
        driver=("btrfs", "loop")[number % 2],
        format=(None, *StreamFormat)[number % 4],
        host=f"h{number % 3}",
        state=state,
        created_at=NOW + timedelta(seconds=number * 13 % 60 / 4),
        taken_at=NOW + timedelta(seconds=number * 7 % 60 / 4),
        parent_uuid=f"uuid-{number:03}" if number % 5 == 0 else None,
        size_bytes=(None, 0, 1 << 40)[number % 3],
        content_bytes=number,
        stored_bytes=number % 7,
        message="In Progress" if number % 11 == 0 else None,
        verified_at=NOW + timedelta(days=number % 7) if number % 2 else None,
        removed_at=NOW + timedelta(hours=number) if state is BackupState.REMOVED else None,
        is_of_snapshot=number % 8 == 0,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = filled(tmp_path_factory.mktemp("few"), [volume(n + 1, state) for n, state in enumerate(STATES)], 60)
    yield opened
    opened.close()


def filled(root: Path, volumes: list[model.Volume], count: int) -> Store:
    """Return a store of some volumes, and snapshots and backups that are spread over them."""
    opened = Store(root)
    opened.commit(lambda write: write.add_pool(model.Pool(PoolId(1), "u", "p", "btrfs", "/p")))

    def fill(write: Any) -> None:
        for each in volumes:
            write.put_volume(each)
        for number in (1, 2):
            write.put_target(target(number))
        for number in range(1, count + 1):
            write.put_snapshot(snapshot(number))
        for number in range(1, count + 1):
            write.put_backup(backup(number))

    opened.commit(fill)
    return opened


def found(
    store: Store, query: list[tuple[str, str]], offset: int = 0, limit: int = 1_000, *, kind: Any = snapshots.KIND
) -> list[int]:
    wish = filters.parse(kind.schema, query)
    if kind is snapshots.KIND:
        return [each.id for each in store.search_snapshots(searches.snapshots(wish, offset, limit))]
    return [each.id for each in store.search_backups(searches.backups(wish, offset, limit))]


@functools.cache
def everything(store: Store, type_: str) -> list[dict[str, Any]]:
    """Return all resources of a type as they are shown."""
    service: Any = SimpleNamespace(
        store=store, jobs=SimpleNamespace(get=lambda _: None), runner=SimpleNamespace(fault=lambda _: None)
    )
    kind: Any = next(kind for kind in KINDS if kind.schema.id == type_)
    whole = filters.Wish(shows_removed=True)
    rows: list[Any] = list(store.search_snapshots(searches.snapshots(whole, 0, 60)))
    if kind is backups.KIND:
        rows = backups._rows(service, store.search_backups(searches.backups(whole, 0, 60)))
    return [{"id": kind.identify(row), **kind.show(service, row)} for row in rows]


def meant(store: Store, query: list[tuple[str, str]], *, kind: Any = snapshots.KIND) -> list[int]:
    """Find the same by looking at each resource as it is shown."""
    wish, shown = filters.parse(kind.schema, query), list(everything(store, kind.schema.id))
    if not wish.has_removed:
        shown = [each for each in shown if each["state"] != "removed"]
    for condition in wish.conditions:
        shown = [each for each in shown if filters.holds(kind.schema, condition, each)]
    if wish.sort is not None:
        shown.sort(key=filters.sort_key(kind.schema, wish.sort), reverse=wish.is_descending)
    return [int(each["id"].removeprefix(f"1{kind.schema.letters}")) for each in shown]


KINDS: list[Any] = [snapshots.KIND, backups.KIND]


def names_of(kind: Any) -> list[str]:
    return [
        f"{name}{'_' if modifier else ''}{modifier}"
        for name, modifiers in kind.schema.filters().items()
        for modifier in ("", *modifiers)
    ]


FILTERS = [(kind, name) for kind in KINDS for name in names_of(kind)]
WORDS = [
    *(text for text in TEXTS if text is not None),
    *("", "%", "_", "a%", "%b", "[", "*", "\0", "\ud800", "1v1", "1v2", "3", "1s7", "snapshot", "backup", "1a1"),
    *("true", "false", "created", "creating", "removed", "yes", "no", "0", str(1 << 40), "uuid-007", "backing-up"),
    *("1b7", "1bt1", "error", "btrfs", "tar", "h1", "v2", "file:///t1", "%/backups/uuid-00_"),
    "file:///t2/volumes/uuid-1/backups/uuid-007",
    *(NOW.isoformat(), "2026-01-02T03:04:09Z", "2026-01-05T03:04:05Z", "1767323050000", "0001-01-01", "-1"),
]
VALUES = st.sampled_from(WORDS) | st.text(max_size=3)


@pytest.mark.parametrize(("kind", "name"), FILTERS, ids=[f"{kind.schema.id}-{name}" for kind, name in FILTERS])
def test_the_store_finds_what_each_filter_means(store: Store, kind: Any, name: str) -> None:
    different = [
        value for value in WORDS if found(store, [(name, value)], kind=kind) != meant(store, [(name, value)], kind=kind)
    ]
    assert different == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.schema.id)
def test_no_list_is_filtered_by_what_only_the_moment_knows(kind: Any) -> None:
    assert not {"transitioningMessage", "transitioningProgress"} & kind.schema.filters().keys()


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), order=st.sampled_from(["asc", "desc"]), removed=st.booleans())
def test_the_store_finds_what_the_filters_mean(
    store: Store, data: st.DataObject, kind: Any, order: str, *, removed: bool
) -> None:
    conditions = data.draw(st.lists(st.tuples(st.sampled_from(names_of(kind)), VALUES), max_size=2))
    sort = data.draw(st.sampled_from([None, *kind.schema.filters()]))
    query = [
        *conditions,
        *([("sort", sort), ("order", order)] if sort else []),
        *([("_removed", "")] if removed else []),
    ]
    assert found(store, query, kind=kind) == meant(store, query, kind=kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.schema.id)
def test_pages_are_parts_of_the_whole(store: Store, kind: Any) -> None:
    query = [("sort", "description"), ("order", "desc"), ("_removed", "")]
    whole = found(store, query, kind=kind)
    assert [each for offset in range(0, 60, 7) for each in found(store, query, offset, 7, kind=kind)] == whole
    assert len(whole) == 60


# Very many


LIMIT_MS = 20.0
"""Of the best of some: others may use this machine."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    rows = [volume(number) for number in range(1, VOLUMES + 1)]
    opened = filled(tmp_path_factory.mktemp("many"), rows, 0)
    values = store_rows.snapshot_values(replace(snapshot(4), state=SnapshotState.CREATED, removed_at=None, name=None))
    copies = ((number, f"uuid-{number}", 1 + number % VOLUMES, *values[3:]) for number in range(1, MANY + 1))
    query = f"INSERT INTO snapshots VALUES ({', '.join('?' * len(values))})"
    opened.commit(lambda write: write._connection.executemany(query, copies))
    kept = store_rows.backup_values(replace(backup(1), state=BackupState.CREATED, parent_uuid=f"uuid-{MANY}"))
    more = (
        (number, f"uuid-{number}", 1 + number % 2, 1 + number % VOLUMES, *kept[4:6], number, *kept[7:])
        for number in range(1, MANY + 1)
    )
    query = f"INSERT INTO backups VALUES ({', '.join('?' * len(kept))})"
    opened.commit(lambda write: write._connection.executemany(query, more))
    yield opened
    opened.close()


QUERIES: list[tuple[Any, list[tuple[str, str]]]] = [
    *((kind, []) for kind in KINDS),
    *((kind, [("sort", "id"), ("order", "desc")]) for kind in KINDS),
    *((kind, [("volumeId", "1v7")]) for kind in KINDS),
    *((kind, [("volumeId", "1v7"), ("sort", "created")]) for kind in KINDS),
    *((kind, [("volumeId", "1v7"), ("state", "created")]) for kind in KINDS),
    (backups.KIND, [("backupTargetId", "1bt2")]),
]


@pytest.mark.parametrize(("kind", "query"), QUERIES, ids=[f"{kind.schema.id}-{query}" for kind, query in QUERIES])
def test_a_page_of_many_takes_no_longer_than_a_page(many: Store, kind: Any, query: list[tuple[str, str]]) -> None:
    times_ms = []
    for _ in range(9):
        begun_s = time.perf_counter()
        rows = found(many, query, 0, 101, kind=kind)
        if kind is backups.KIND:
            many.parents(many.search_backups(searches.backups(filters.Wish(), 0, 101)))
        times_ms.append((time.perf_counter() - begun_s) * 1e3)
    assert len(rows) >= 100
    assert min(times_ms) < LIMIT_MS, times_ms


def test_many_are_counted_without_reading_them(many: Store) -> None:
    assert many.backup_count() == MANY
    times_ms = []
    for _ in range(9):
        begun_s = time.perf_counter()
        many.backup_count()
        times_ms.append((time.perf_counter() - begun_s) * 1e3)
    assert min(times_ms) < LIMIT_MS, times_ms
