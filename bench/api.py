"""The Rancher API: Get of one volume beside a bare handler, and lists among 100,000 snapshots."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.client import Client, request
from bench.daemon import bare, running, scratch
from voldriverd.model import Snapshot, SnapshotId, SnapshotState
from voldriverd.store import Store
from voldriverd.store.write import Write

VOLUMES = 1_000
EACH = 100
"""Snapshots of each volume."""
BATCH = 40
LISTS = (
    ("a page of 100", "/v1/snapshots", "< 20 ms"),
    ("the last page of 100", f"/v1/snapshots?marker=m{VOLUMES * EACH - 100}", "< 40 ms"),
    ("volumeId=1v500", "/v1/snapshots?volumeId=1v500", "< 20 ms"),
    ("one volume's, by their time", "/v1/snapshots?volumeId=1v500&sort=created", "< 20 ms"),
    ("name=s-77-7", "/v1/snapshots?name=s-77-7", ""),
    ("1 volume with include=snapshots", "/v1/volumes?limit=1&include=snapshots", "< 20 ms"),
    ("10 volumes with include=snapshots", "/v1/volumes?limit=10&include=snapshots", "10 times"),
)


def run(rounds: int) -> list[tuple[str, str, str]]:
    """Measure all of it."""
    with scratch() as base:
        with running(base) as daemon, Client(daemon.plugin) as plugin:
            for number in range(VOLUMES):
                plugin.post("/VolumeDriver.Create", {"Name": f"v{number}"})
        _fill(base / "root")
        with running(base) as daemon, Client(daemon.api) as api:
            figures = [_get(base, api, rounds)]
            for title, path, target in LISTS:
                times = [api.timed(request(path, method="GET")) for _ in range(rounds * 3)]
                figures.append((f"100,000 snapshots: {title}", f"{median(times):.1f} ms", target))
            figures.append(("memory after these lists", f"{daemon.memory_mib():.0f} MiB", "< 150 MiB"))
    return figures


def _get(base: Path, api: Client, rounds: int) -> tuple[str, str, str]:
    asked = request("/v1/volumes/1v1", method="GET")
    _, answer = api.raw(asked)
    ours: list[float] = []
    least: list[float] = []
    with bare(base, answer) as path, Client(path) as plain:
        for _ in range(rounds):
            least.append(median(plain.timed(asked) for _ in range(BATCH)))
            ours.append(median(api.timed(asked) for _ in range(BATCH)))
    one, two = median(ours), median(least)
    return "GET of one volume / bare handler", f"{one / two:.2f}  ({one:.3f} ms / {two:.3f} ms)", "≤ 2"


def _fill(root: Path) -> None:
    """Write rows of snapshots without trees, which no daemon sees the content of."""
    store = Store(root)

    def fill(write: Write) -> None:
        for each in _snapshots(store):
            write.put_snapshot(each)

    store.commit(fill)
    store.close()


def _snapshots(store: Store) -> Iterator[Snapshot]:
    now = datetime.now(UTC)
    for volume in store.volumes():
        for number in range(EACH):
            yield Snapshot(
                id=SnapshotId(store.reserve_id("snapshots")),
                uuid=f"{volume.id}-{number}",
                volume_id=volume.id,
                name=f"s-{volume.id}-{number}",
                description=None,
                key=None,
                state=SnapshotState.CREATED,
                is_automatic=False,
                size_bytes=None,
                created_at=now,
            )
