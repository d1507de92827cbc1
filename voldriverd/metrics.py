"""What the daemon tells Prometheus, in its text format; docs/metrics.md says what each metric means.

Read when somebody asks: rows from memory, in a thread; file systems in threads of their own, each asked once at a time,
so that one that hangs costs its own figures and nothing else. Verbs pay for one addition each. The client library is
imported by the first who asks: it would cost every start 10 ms.
"""

import asyncio
import math
import platform
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import voldriverd
from voldriverd import jobs, journal, logs, model, names, verbs
from voldriverd.engine import pools
from voldriverd.errors import Error
from voldriverd.service import Service
from voldriverd.store import Store

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

_POOL: Final = ("pool", "driver")
_HEAD: Final = "# HELP {name} {text}\n# TYPE {name} gauge\n"
_EXPECTED: Final = [
    (verb, driver, result)
    for verb, results in (("backup", (verbs.OK, "failed")), ("verify", (verbs.OK, "damaged")))
    for driver in names.DRIVERS
    for result in results
]
"""Counted as 0 before the first one: Prometheus sees no increase in what begins with 1."""
_EOF: Final = b"# EOF\n"
"""The end of OpenMetrics."""
_Rows = Iterable[tuple[Sequence[str], float]]


class Metrics:
    """The metrics of a service; `write` is called on its event loop."""

    def __init__(self, service: Service) -> None:
        """Read nothing yet."""
        self._service = service
        self._times = BackupTimes(service.store)
        self._trash: dict[model.PoolId, _Trash] = {}
        self._registry: CollectorRegistry | None = None
        self._seen = _Seen({}, {})
        self._turn = asyncio.Lock()

    async def write(self, accepted: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, the best that an Accept header takes."""
        async with self._turn:
            usages = self._service.usages
            spaces, trash = await asyncio.gather(usages.spaces(), usages.of_pools("trash", self._trash_of))
            self._seen = _Seen(spaces, trash)
            return await self._service.runner.in_thread(self._write, accepted)

    def collect(self) -> "Iterator[Metric]":
        """Yield all of them; for the registry, in a thread."""
        yield _gauge("build_info", "The daemon that runs.", ("version", "python"), [(_BUILD, 1)])
        yield from self._of_pools()
        yield from self._of_kernel()
        yield from self._of_backups()
        yield from self._of_work()

    def _write(self, accepted: str) -> tuple[bytes, str]:
        from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415 - 10 ms, for who asks
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - the same

        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
        encode, content_type = choose_encoder(accepted)
        content = encode(self._registry)
        end = _EOF if content.endswith(_EOF) else b""
        return b"".join((content.removesuffix(end), *self._of_volumes(), end)), content_type

    def _of_pools(self) -> "Iterator[Metric]":
        found = sorted(self._service.engine.pools, key=lambda pool: pool.row.name)
        named = {pool.row.id: (pool.row.name, pool.row.driver) for pool in found}
        counts = _Counts(self._service.store)
        spaces = self._seen.spaces
        healths = [((*named[each.row.id], one.value), each.health is one) for each in found for one in model.Health]
        yield _gauge("pool_health", "1 for the health that a pool has, 0 for others.", (*_POOL, "health"), healths)
        for name, text, figures in (
            ("capacity_bytes", "Size of a pool's file system.", {each: total for each, (total, _) in spaces.items()}),
            ("used_bytes", "What is not free.", {each: total - free for each, (total, free) in spaces.items()}),
            ("free_bytes", "Free space of a pool's file system.", {each: free for each, (_, free) in spaces.items()}),
            ("trash_bytes", "What the volumes in the trash use.", self._seen.trash),
            ("volumes", "Volumes, without the trash.", counts.volumes),
            ("trash_volumes", "Volumes in the trash.", counts.trashed),
            ("mounted_volumes", "Volumes that are mounted.", counts.mounted),
            ("holders", "Who has volumes mounted, containers mostly.", counts.holders),
            ("snapshots", "Snapshots, those of the trash too.", counts.snapshots),
            ("ailing_volumes", "Mounted volumes with trouble of their own.", self._ailing()),
            ("orphans", "Trees on disk that no row knows.", {pool.row.id: len(pool.orphans) for pool in found}),
        ):
            is_count = isinstance(figures, Counter)
            known = [(named[each], figures[each]) for each in named if is_count or figures.get(each) is not None]
            yield _gauge(f"pool_{name}", text, _POOL, known)  # type: ignore[arg-type]  # what is None is not known
        reserve = self._service.engine.limits.reserve
        yield _gauge("reserve_ratio", "The share of a pool that is kept free.", (), [((), reserve)])

    def _of_kernel(self) -> "Iterator[Metric]":
        """Yield what the kernel tells of file systems and devices (`engine.health`)."""
        from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - as above

        engine = self._service.engine
        errors = CounterMetricFamily(
            "voldriver_pool_errors", "Errors that a file system has counted.", labels=(*_POOL, "device", "kind")
        )
        troubles = []
        for pool in sorted(engine.pools, key=lambda pool: pool.row.name):
            name = pool.row.name, pool.row.driver
            has = {ailment.trouble for ailment in pool.ailments}
            troubles += [((*name, each.value), each in has) for each in model.Trouble]
            for each in pool.counts:
                errors.add_metric((*name, each.device, each.kind), each.count)
        yield _gauge("pool_trouble", "What the kernel tells of a pool, 0 or 1.", (*_POOL, "trouble"), troubles)
        yield errors
        ailing = [
            ((volume.name, ailment.trouble.value), 1)
            for volume_id, ailments in sorted(engine.ailments.all().items())
            if (volume := engine.store.volume(volume_id)) is not None
            for ailment in ailments
        ]
        text = "1 for what the kernel tells of a mounted volume; there is none of one that is sound."
        yield _gauge("volume_trouble", text, ("volume", "trouble"), ailing)

    def _of_volumes(self) -> Iterator[bytes]:
        """Two series for each volume that has a backup, and one number for those that have none.

        Written here: the library takes 10 µs for each, 200 ms for 10,000 volumes, and this a twentieth. A name of a
        volume needs no escaping, and both formats have such lines.
        """
        times = self._times.read()
        live = [volume for volume in self._service.store.volumes() if volume.is_live]
        having = [(volume.name, times[volume.id]) for volume in live if volume.id in times]
        lacking = sum(volume.id not in times and not names.is_anonymous(volume.name) for volume in live)
        name = "voldriver_volume_last_backup_timestamp_seconds"
        text = "When the content was frozen that the newest complete backup of a volume holds."
        lines = [f'{name}{{volume="{volume}"}} {each.taken_at.timestamp()}\n' for volume, each in having]
        yield _HEAD.format(name=name, text=text).encode() + "".join(lines).encode()
        name = "voldriver_volume_last_verified_timestamp_seconds"
        text = "When a backup of a volume was last read through and found right."
        verified = [(volume, each.verified_at.timestamp()) for volume, each in having if each.verified_at is not None]
        lines = [f'{name}{{volume="{volume}"}} {at}\n' for volume, at in verified]
        yield _HEAD.format(name=name, text=text).encode() + "".join(lines).encode()
        name = "voldriver_volumes_without_backup"
        yield f"{_HEAD.format(name=name, text='Named volumes without a complete backup.')}{name} {lacking}\n".encode()

    def _of_backups(self) -> "Iterator[Metric]":
        service = self._service
        yield _gauge("backups", "Backups that are not removed.", (), [((), service.store.backup_count())])
        healths = [((each.name,), self._is_available(each)) for each in service.backups.targets()]
        text = "Whether a target for backups could be used when it was last."
        yield _gauge("target_available", text, ("target",), healths)
        going = Counter((job.verb, "running" if job.waits_for is None else "waiting") for job in service.jobs.all())
        shown = {(verb, state): 0 for verb in jobs.VERBS for state in ("running", "waiting")} | going
        yield _gauge("jobs", "Long jobs that have begun and not ended.", ("verb", "state"), sorted(shown.items()))

    def _of_work(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily  # noqa: PLC0415 - as above

        durations = HistogramMetricFamily(
            "voldriver_verb_duration_seconds", "Verbs that have ended.", labels=("verb", "driver", "result")
        )
        known = {key: verbs.Durations() for key in _EXPECTED} | self._service.runner.verbs.durations
        for key, each in sorted(known.items()):
            durations.add_metric(key, buckets=_cumulated(each.counts), sum_value=each.sum_s)
        yield durations
        failures = CounterMetricFamily("voldriver_failures", "Verbs that have failed, all in all.", labels=("result",))
        for result in logs.KINDS:
            failures.add_metric((result,), sum(sum(each.counts) for key, each in known.items() if key[2] == result))
        yield failures
        requests = CounterMetricFamily(
            "voldriver_requests", "Requests that were answered.", labels=("door", "method", "status")
        )
        for (door, method, status), count in sorted(self._service.requests.copy().items()):
            requests.add_metric((door, method.rpartition(".")[2], str(status)), count)
        yield requests
        stalls = self._service.stalls
        text = "The longest time of the last minute for which the event loop stood still."
        yield _gauge("event_loop_stall_seconds", text, (), [((), stalls.recent_s())])
        text = "The same since the start."
        yield _gauge("event_loop_stall_longest_seconds", text, (), [((), stalls.longest_s)])
        lost = CounterMetricFamily("voldriver_log_lines_lost", "Lines that the journal did not take.")
        lost.add_metric((), journal.lost())
        yield lost

    def _ailing(self) -> Counter[model.PoolId]:
        """Return how many volumes of each pool ail."""
        found = map(self._service.store.volume, self._service.engine.ailments.all())
        return Counter(volume.pool_id for volume in found if volume is not None)

    def _is_available(self, target: model.Target) -> bool:
        return self._service.backups.health(target.id)[0] is model.Health.AVAILABLE

    def _trash_of(self, pool: pools.Pool) -> int | None:
        """Return what the trash of a pool uses; None where its driver cannot tell. Blocks; raises Error, OSError."""
        store, driver = self._service.store, self._service.engine.pools.driver(pool.row.id)
        before, known = self._trash.get(pool.row.id, _Trash()), _Trash()
        self._trash[pool.row.id] = known
        for volume in [each for each in store.volumes() if not each.is_live and each.pool_id == pool.row.id]:
            key = volume.id, volume.removed_at
            if key in before:
                known[key] = before[key]
                continue
            try:
                used_bytes = driver.usage(volume.tree).used_bytes
            except (Error, OSError):
                if store.volume(volume.id) is None:  # it was destroyed meanwhile
                    continue
                raise
            if used_bytes is None:
                return None
            known[key] = used_bytes
        return sum(known.values())


class BackupTimes:
    """When each volume was backed up and verified last: read once, and again where a backup has changed."""

    def __init__(self, store: Store) -> None:
        """Read nothing yet."""
        self._store = store
        self._lock = threading.Lock()
        self._changed: set[model.VolumeId] | None = None
        """None: all, for nobody has asked yet."""
        self._times: dict[model.VolumeId, model.BackupTimes] = {}
        store.watch(self._note)

    def read(self) -> dict[model.VolumeId, model.BackupTimes]:
        """Return the times by volume; one at a time, in a thread."""
        with self._lock:
            changed, self._changed = self._changed, set()
        if changed is None or changed:
            try:
                found = self._store.backup_times(changed)
            except BaseException:
                with self._lock:
                    self._changed = None
                raise
            kept = {} if changed is None else {key: self._times[key] for key in self._times.keys() - changed}
            self._times = kept | found
        return self._times

    def _note(self, commit: model.Commit) -> None:
        changed = {row.volume_id for row in commit.rows if isinstance(row, model.Backup) and row.volume_id is not None}
        if changed:
            with self._lock:
                if self._changed is not None:
                    self._changed |= changed


class _Trash(dict[tuple[model.VolumeId, datetime | None], int]):
    """The bytes that trashed volumes use, by when each was removed; asked once, for nobody writes to them."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What file systems have said."""

    spaces: dict[model.PoolId, tuple[int, int]]
    trash: dict[model.PoolId, int | None]


class _Counts:
    """What there is in each pool, in one pass over the volumes."""

    def __init__(self, store: Store) -> None:
        self.volumes: Counter[model.PoolId] = Counter()
        self.trashed: Counter[model.PoolId] = Counter()
        self.mounted: Counter[model.PoolId] = Counter()
        self.holders: Counter[model.PoolId] = Counter()
        self.snapshots: Counter[model.PoolId] = Counter()
        for volume in store.volumes():
            (self.volumes if volume.is_live else self.trashed)[volume.pool_id] += 1
            self.snapshots[volume.pool_id] += store.snapshot_summary(volume.id).count
            held = store.mounts(volume.id)
            if held:
                self.mounted[volume.pool_id] += 1
                self.holders[volume.pool_id] += len(held)


_BUILD: Final = (voldriverd.__version__, platform.python_version())


def _gauge(name: str, text: str, labels: Sequence[str], rows: _Rows) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - as above
    from prometheus_client.samples import Sample  # noqa: PLC0415 - as above

    full = f"voldriver_{name}"
    family: Any = GaugeMetricFamily(full, text, labels=labels)
    family.samples = [Sample(full, dict(zip(labels, values, strict=True)), value) for values, value in rows]
    return family  # type: ignore[no-any-return]  # it is what was made above


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    """Return (bound, how many took no longer) as Prometheus wants them."""
    total, found = 0, []
    for bound, count in zip((*verbs.BOUNDS_S, math.inf), counts.copy(), strict=True):
        total += count
        found.append(("+Inf" if bound == math.inf else str(bound), float(total)))
    return found
