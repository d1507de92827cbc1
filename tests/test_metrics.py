"""What the daemon tells Prometheus: the figures, the doors, and that nobody waits for them."""

import asyncio
import logging
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests import backing
from tests.doors import Tcp, free_port, listening, make_key
from tests.engines import Bench, bench_on
from tests.running import Running, pools_config
from voldriverd import logs, metrics, model, usages, verbs
from voldriverd.driver import Key, Usage
from voldriverd.engine import mounts, snapshots, space
from voldriverd.engine.pools import Pool
from voldriverd.errors import InUse, Unusable
from voldriverd.kernel import counters
from voldriverd.service import Service

_T = TypeVar("_T")

DOCS: Final = Path(__file__).parent.parent / "docs" / "metrics.md"
POOL: Final = {"pool": "memory", "driver": "memory"}


class Figures:
    """A scrape, read as Prometheus reads it."""

    def __init__(self, text: str, parse: Callable[[str], Any] = text_string_to_metric_families) -> None:
        self.families = {family.name: family for family in parse(text)}
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        value = self.samples.get((name, *sorted(labels.items())))
        return None if value is None else float(value)

    def of(self, name: str, label: str) -> dict[str, float]:
        """Return the samples of a name by one of their labels."""
        return {dict(rest)[label]: value for (each, *rest), value in self.samples.items() if each == name}


def scraped(bench: Bench, work: Callable[[Service, metrics.Metrics], Awaitable[_T]]) -> _T:
    async def serve() -> _T:
        service = Service(bench.engine)
        try:
            return await work(service, metrics.Metrics(service))
        finally:
            await service.stop(within_s=10.0)

    return asyncio.run(serve())


async def figures(told: metrics.Metrics) -> Figures:
    content, _ = await told.write("")
    return Figures(content.decode())


def once(bench: Bench) -> Figures:
    return scraped(bench, lambda _, told: figures(told))


@pytest.fixture
def target(bench: Bench, tmp_path: Path) -> Iterator[model.Target]:
    place = tmp_path / "target"
    yield backing.add_target(bench.engine, place)
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


# Pools and volumes


def test_volumes_snapshots_and_holders_are_counted_by_pool(bench: Bench) -> None:
    for name in ("db", "web", "old"):
        bench.create(name)
    for holder in ("c1", "c2"):
        bench.mount("db", holder)
    for name in ("db", "old"):
        backing.freeze(bench.engine, bench.volume(name))

    async def work(service: Service, told: metrics.Metrics) -> Figures:
        await service.remove(bench.volume("old").id)
        return await figures(told)

    found = scraped(bench, work)
    bench.unmount_all()
    assert {name: found(f"voldriver_pool_{name}", **POOL) for name in ("volumes", "trash_volumes", "snapshots")} == {
        "volumes": 2,
        "trash_volumes": 1,
        "snapshots": 2,
    }
    assert (found("voldriver_pool_holders", **POOL), found("voldriver_pool_mounted_volumes", **POOL)) == (2, 1)


def test_the_space_of_a_pool_is_that_of_its_file_system(bench: Bench) -> None:
    total, free = space.capacity(next(iter(bench.engine.pools)))
    found = once(bench)
    assert found("voldriver_pool_capacity_bytes", **POOL) == total
    assert found("voldriver_pool_free_bytes", **POOL) == pytest.approx(free, abs=1 << 20)
    used = found("voldriver_pool_used_bytes", **POOL)
    assert used == total - (found("voldriver_pool_free_bytes", **POOL) or 0)
    assert found("voldriver_reserve_ratio") == 0.0


def test_a_pool_that_is_unavailable_says_so_and_has_no_space(bench: Bench) -> None:
    bench.create("db")
    pool = next(iter(bench.engine.pools))
    pool.driver, pool.reason = None, "its disk is gone"
    found = once(bench)
    healths = found.of("voldriver_pool_health", "health")
    assert healths == {health.value: float(health is model.Health.UNAVAILABLE) for health in model.Health}
    assert found("voldriver_pool_volumes", **POOL) == 1
    assert not [name for name, *_ in found.samples if name.startswith("voldriver_pool") and name.endswith("_bytes")]


def test_what_the_kernel_tells_is_told(bench: Bench) -> None:
    volume = bench.create("db")
    gone = bench.create("gone")
    pool = next(iter(bench.engine.pools))
    pool.ailments = (model.Ailment(model.Trouble.ERRORS, "its btrfs has counted some"),)
    pool.counts = (counters.Count("1", "write_errs", 3), counters.Count("1", "read_errs", 0))
    ailing = (model.Ailment(model.Trouble.READ_ONLY, "its ext4 is read-only"),)
    bench.engine.ailments.put({volume.id: ailing, gone.id: ailing})

    async def work(service: Service, told: metrics.Metrics) -> Figures:
        await service.remove(gone.id)
        await service.purge(gone.id)
        return await figures(told)

    found = scraped(bench, work)
    assert found("voldriver_pool_health", **POOL, health="degraded") == 1
    assert found.of("voldriver_pool_trouble", "trouble") == {
        each.value: float(each is model.Trouble.ERRORS) for each in model.Trouble
    }
    assert found.of("voldriver_pool_errors_total", "kind") == {"write_errs": 3, "read_errs": 0}
    assert found.of("voldriver_volume_trouble", "volume") == {"db": 1}
    assert found("voldriver_pool_ailing_volumes", **POOL) == 1


def used(amounts: Mapping[Key, int | None], asked: list[str]) -> Callable[[Key], Usage]:
    def usage(key: Key) -> Usage:
        asked.append(key)
        return Usage(amounts[key], None, None)

    return usage


def test_the_trash_is_asked_for_its_bytes_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "kept"):
        bench.create(name)
    amounts: dict[Key, int | None] = {
        bench.volume(name).tree: size for name, size in (("one", 10), ("two", 20), ("kept", 40))
    }
    asked: list[str] = []
    monkeypatch.setattr(bench.driver, "usage", used(amounts, asked))

    async def work(service: Service, told: metrics.Metrics) -> list[float | None]:
        seen = [(await figures(told))("voldriver_pool_trash_bytes", **POOL)]
        for name in ("one", "two"):
            await service.remove(bench.volume(name).id)
            seen.append((await figures(told))("voldriver_pool_trash_bytes", **POOL))
        await service.restore(bench.trashed("one").id, name=None)
        seen.append((await figures(told))("voldriver_pool_trash_bytes", **POOL))
        amounts[bench.volume("one").tree] = 100
        await service.remove(bench.volume("one").id)
        seen.append((await figures(told))("voldriver_pool_trash_bytes", **POOL))
        await service.purge(bench.trashed("two").id)
        return [*seen, (await figures(told))("voldriver_pool_trash_bytes", **POOL)]

    assert scraped(bench, work) == [0, 10, 30, 20, 120, 100]
    assert len(asked) == 3


def test_bytes_of_the_trash_that_no_driver_can_tell_are_not_shown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = bench.create("one")
    monkeypatch.setattr(bench.driver, "usage", used({volume.tree: None}, []))

    async def work(service: Service, told: metrics.Metrics) -> Figures:
        await service.remove(volume.id)
        return await figures(told)

    found = scraped(bench, work)
    assert found("voldriver_pool_trash_bytes", **POOL) is None
    assert found("voldriver_pool_trash_volumes", **POOL) == 1


@pytest.mark.parametrize("is_gone", [True, False])
def test_trash_that_goes_while_it_is_asked_costs_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, is_gone: bool
) -> None:
    volume = bench.create("one")

    async def work(service: Service, told: metrics.Metrics) -> Figures:
        await service.remove(volume.id)

        def usage(_key: str) -> Usage:
            if is_gone:
                monkeypatch.setattr(bench.store, "volume", lambda _: None)
            raise Unusable("it went")

        monkeypatch.setattr(bench.driver, "usage", usage)
        return await figures(told)

    assert scraped(bench, work)("voldriver_pool_trash_bytes", **POOL) == (0 if is_gone else None)


def test_a_file_system_that_hangs_costs_one_thread_and_its_own_figures(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usages, "SPACE_TIMEOUT_S", 0.05)
    bench.create("db")
    go_on, asked = threading.Event(), []

    def hang(pool: Pool) -> tuple[int, int]:
        asked.append(pool.row.name)
        go_on.wait(20)
        return 2, 1

    monkeypatch.setattr(space, "capacity", hang)

    async def work(_: Service, told: metrics.Metrics) -> list[float | None]:
        first, second = await figures(told), await figures(told)
        assert second("voldriver_pool_volumes", **POOL) == 1
        go_on.set()
        third = await figures(told)
        return [each("voldriver_pool_free_bytes", **POOL) for each in (first, second, third)]

    assert scraped(bench, work) == [None, None, 1]
    assert asked == ["memory"], "the third got what the first had asked for"


# Backups


def test_the_newest_backup_and_the_last_verification_are_told_by_volume(bench: Bench, target: model.Target) -> None:
    for name in ("db", "web", "none", "a" * 64):
        bench.create(name)
    made = [backing.back_up(bench.engine, bench.volume(name), target) for name in ("db", "db", "web")]
    at = datetime(2026, 1, 2, tzinfo=UTC)

    async def work(_: Service, told: metrics.Metrics) -> list[Figures]:
        first = await figures(told)
        bench.store.commit(
            lambda write: write.put_backup(replace(backing.present(bench.engine, made[0]), verified_at=at))
        )
        second = await figures(told)
        newest = backing.present(bench.engine, made[1])
        bench.store.commit(lambda write: write.put_backup(replace(newest, state=model.BackupState.REMOVED, key=None)))
        return [first, second, await figures(told)]

    first, second, third = scraped(bench, work)
    name = "voldriver_volume_last_backup_timestamp_seconds"
    assert first.of(name, "volume") == {"db": made[1].taken_at.timestamp(), "web": made[2].taken_at.timestamp()}
    assert first("voldriver_volumes_without_backup") == 1, "who has no name of its own is not counted"
    assert first.of("voldriver_volume_last_verified_timestamp_seconds", "volume") == {}
    assert second.of("voldriver_volume_last_verified_timestamp_seconds", "volume") == {"db": at.timestamp()}
    assert third.of(name, "volume") == {"db": made[0].taken_at.timestamp(), "web": made[2].taken_at.timestamp()}
    assert [each("voldriver_backups") for each in (first, third)] == [3, 2]
    assert first("voldriver_target_available", target="near") == 1


def test_a_volume_in_the_trash_has_no_series(bench: Bench, target: model.Target) -> None:
    backing.back_up(bench.engine, bench.create("db"), target)

    async def work(service: Service, told: metrics.Metrics) -> Figures:
        await service.remove(bench.volume("db").id)
        return await figures(told)

    found = scraped(bench, work)
    assert found.of("voldriver_volume_last_backup_timestamp_seconds", "volume") == {}
    assert found("voldriver_volumes_without_backup") == 0


def test_times_are_read_once_and_again_where_something_changed(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = bench.create("db")
    asked: list[object] = []
    read = bench.store.backup_times

    def noted(wanted: set[model.VolumeId] | None) -> dict[model.VolumeId, model.BackupTimes]:
        asked.append(wanted)
        return read(wanted)

    monkeypatch.setattr(bench.store, "backup_times", noted)
    times = metrics.BackupTimes(bench.store)
    assert (times.read(), times.read()) == ({}, {})
    made = backing.back_up(bench.engine, volume, target)
    assert times.read() == {volume.id: model.BackupTimes(made.taken_at, None)} == times.read()
    assert asked == [None, {volume.id}]


def test_what_could_not_be_read_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, target: model.Target
) -> None:
    times = metrics.BackupTimes(bench.store)
    times.read()
    made = backing.back_up(bench.engine, bench.create("db"), target)
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "backup_times", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            times.read()
    assert times.read() == {made.volume_id: model.BackupTimes(made.taken_at, None)}


# Work


def test_verbs_are_counted_by_what_they_came_to(bench: Bench) -> None:
    bench.create("db")

    async def work(service: Service, told: metrics.Metrics) -> Figures:
        await service.mount(bench.volume("db").id, "c1")
        with pytest.raises(InUse):
            await service.remove(bench.volume("db").id)
        await service.unmount(bench.volume("db").id, "c1")
        return await figures(told)

    found = scraped(bench, work)
    counts = {
        (verb, result): found("voldriver_verb_duration_seconds_count", verb=verb, result=result, driver="")
        for verb, result in (("mount", "ok"), ("unmount", "ok"), ("remove", "in_use"), ("remove", "ok"))
    }
    assert counts == {("mount", "ok"): 1, ("unmount", "ok"): 1, ("remove", "in_use"): 1, ("remove", "ok"): None}
    assert found.of("voldriver_failures_total", "result") == {kind: float(kind == "in_use") for kind in logs.KINDS}


def test_durations_fall_into_classes() -> None:
    durations = verbs.Durations()
    for took_s in (0.0, 0.005, 0.006, 1e9):
        durations.note(took_s)
    assert metrics._cumulated(durations.counts)[:2] == [("0.005", 2.0), ("0.01", 3.0)]
    assert metrics._cumulated(durations.counts)[-2:] == [("21600.0", 3.0), ("+Inf", 4.0)]
    assert durations.sum_s == pytest.approx(1e9)


def test_what_alerts_look_for_is_there_before_it_happens(bench: Bench) -> None:
    found = once(bench)
    for verb, result in (("backup", "failed"), ("verify", "damaged")):
        for driver in ("btrfs", "loop", "directory"):
            labels = {"verb": verb, "result": result, "driver": driver}
            assert found("voldriver_verb_duration_seconds_count", **labels) == 0


def test_jobs_are_counted_by_verb_and_whether_they_wait(bench: Bench) -> None:
    async def work(service: Service, told: metrics.Metrics) -> Figures:
        with service.jobs.running("1b1", "backup"), service.jobs.running("1b2", "backup") as second:
            second.waits_for = "another"
            return await figures(told)

    found = scraped(bench, work)
    assert [found("voldriver_jobs", verb="backup", state=state) for state in ("running", "waiting")] == [1, 1]
    assert found("voldriver_jobs", verb="restore", state="running") == 0


def test_stalls_are_told(bench: Bench) -> None:
    async def work(service: Service, told: metrics.Metrics) -> Figures:
        service.stalls.note(0.2, now_s=1.0)
        service.stalls.note(0.1, now_s=100.0)
        return await figures(told)

    found = scraped(bench, work)
    assert found("voldriver_event_loop_stall_seconds") == pytest.approx(0.1)
    assert found("voldriver_event_loop_stall_longest_seconds") == pytest.approx(0.2)
    assert found("voldriver_log_lines_lost_total") == 0


# Thousands of volumes


def test_nobody_waits_for_a_scrape_of_thousands_of_volumes(memory_root: Path, tmp_path: Path) -> None:
    with bench_on(memory_root) as bench:
        row = bench.create("v0")
        place = tmp_path / "target"
        made = backing.back_up(bench.engine, row, backing.add_target(bench.engine, place))
        later = made.taken_at + timedelta(hours=1)

        def many(write: Any) -> None:
            for number in range(1_000, 4_000):
                volume_id = model.VolumeId(number)
                write.put_volume(replace(row, id=volume_id, uuid=str(number), name=f"v{number}", key=None))
                backup = replace(backing.present(bench.engine, made), id=model.BackupId(number), key=None)
                write.put_backup(replace(backup, volume_id=volume_id, snapshot_id=None, verified_at=later))

        bench.store.commit(many)

        async def work(_: Service, told: metrics.Metrics) -> tuple[Figures, int]:
            await told.write("")
            turns, writing = 0, asyncio.ensure_future(told.write(""))
            while not writing.done():  # the loop goes round while the thread writes
                turns += 1
                await asyncio.sleep(0)
            return Figures((await writing)[0].decode()), turns

        found, turns = scraped(bench, work)
    assert len(found.of("voldriver_volume_last_backup_timestamp_seconds", "volume")) == 3_001
    assert len(found.of("voldriver_volume_last_verified_timestamp_seconds", "volume")) == 3_000
    assert turns > 10


# Lines of verbs


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, verbs.__name__)
    return lambda: [f"{each.levelname} {re.sub(r'_ms=[0-9.]+', '_ms=1', each.getMessage())}" for each in caplog.records]


def test_a_verb_that_nobody_asked_for_is_ours(told: Callable[[], list[str]]) -> None:
    counted = verbs.Verbs()
    counted.note("expire", {"volume": "db", "driver": "loop"}, 0.5)
    counted.note("reconcile", {"volume": "db"}, 0.5)
    counted.note("expire", {"volume": "db"}, 0.5, error=InUse("cannot do it"))
    assert told() == [
        "INFO verb=expire volume=db driver=loop result=ok duration_ms=1 by=voldriverd",
        "DEBUG verb=reconcile volume=db result=ok duration_ms=1 by=voldriverd",
        'WARNING verb=expire volume=db result=in_use duration_ms=1 error="cannot do it" by=voldriverd',
    ]
    assert set(counted.durations) == {("expire", "loop", "ok"), ("reconcile", "", "ok"), ("expire", "", "in_use")}


def test_the_last_verb_before_an_answer_is_left_to_the_line_of_its_request(told: Callable[[], list[str]]) -> None:
    asker = verbs.Asker("uid:7", "pid:8")
    token = verbs.ASKER.set(asker)
    try:
        counted = verbs.Verbs()
        counted.note("snapshot", {"volume": "db"}, 0.5)
        counted.note("backup", {"volume": "db"}, 0.5)
        asker.is_answered = True
        counted.note("verify", {"backup": "1b1"}, 0.5)
    finally:
        verbs.ASKER.reset(token)
    assert asker.told["verb"] == "backup"
    assert told() == [
        "INFO verb=snapshot volume=db result=ok duration_ms=1 by=uid:7 from=pid:8",
        "INFO verb=verify backup=1b1 result=ok duration_ms=1 by=uid:7 from=pid:8",
    ]


def test_a_driver_that_is_none_of_ours_is_no_label() -> None:
    counted = verbs.Verbs()
    counted.note("verify", {"driver": "zfs of another host"}, 0.5)
    counted.note("create", {"driver": None}, 0.5)
    assert set(counted.durations) == {("verify", "", "ok"), ("create", "", "ok")}


def test_an_error_that_was_told_is_known() -> None:
    error = OSError(5, "of the disk")
    assert not verbs.is_told(error)
    verbs.Verbs().note("mount", {}, 0.5, error=error)
    assert verbs.is_told(error)


def lines_of(caplog: pytest.LogCaptureFixture, verb: str) -> list[str]:
    return [line for each in caplog.records if f"verb={verb} " in (line := each.getMessage())]


def test_what_fails_in_the_background_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    volume = bench.create("db")

    def refuse(*_: object) -> None:
        raise InUse("cannot unmount volume db: it is busy")

    async def work(service: Service, _: metrics.Metrics) -> None:
        await service.mount(volume.id, "c1")
        with monkeypatch.context() as patch:
            patch.setattr(mounts, "detach_unheld", refuse)
            await service.unmount(volume.id, "c1")

    scraped(bench, work)
    bench.unmount_all()
    (line,) = lines_of(caplog, "unmount")
    assert "result=in_use" in line
    assert line.endswith('error="cannot unmount volume db: it is busy" by=voldriverd')


def test_what_fails_after_its_answer_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    volume = bench.create("db")
    go_on = threading.Event()

    def fail(_engine: object, _volume: object, _snapshot: object) -> None:
        go_on.wait(20)
        raise Unusable("its disk is gone")

    async def work(service: Service, _: metrics.Metrics) -> None:
        monkeypatch.setattr(snapshots, "finish_create", fail)
        answered = await service.snapshot(volume.id, snapshots.Wish("s"), answer_s=0.01)
        monkeypatch.undo()
        go_on.set()
        while service.runner.fault(f"1s{answered.id}") is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)

    scraped(bench, work)
    assert len([each for each in caplog.records if "its disk is gone" in each.getMessage()]) == 1


# The doors


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("metrics")
    with Running(base / "d", config=listening(port) + pools_config(plain=("directory", base / "pool"))) as daemon:
        yield daemon


@pytest.mark.root
def test_every_metric_is_in_the_docs_and_no_other(daemon: Running) -> None:
    text = daemon.api("GET", "/metrics").body.decode()
    exported = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    table = re.findall(r"^\| `(\w+)` \|([^|]*)\|", DOCS.read_text().partition("## Metrics")[2], re.MULTILINE)
    documented = {
        name: re.findall(r"`(\w+)`", labels) for name, labels in table if re.match(r"voldriver_|process_", name)
    }
    assert set(documented) == set(exported)
    for name, labels in documented.items():
        found = {
            label
            for each in re.findall(rf"^{name}(?:_bucket)?{{(.*)}} ", text, re.MULTILINE)
            for label in re.findall(r'(\w+)="', each)
        } - {"le"}
        assert found in ({*labels}, set()), name
    kinds = {name: kind for name, kind in exported.items() if name.endswith("_total")}
    assert set(kinds.values()) == {"counter"}


@pytest.mark.root
def test_all_figures_of_a_daemon_can_be_read_in_both_formats(daemon: Running) -> None:
    daemon.plugin("VolumeDriver.Create", Name="db")
    daemon.plugin("VolumeDriver.Get", Name="db")
    daemon.plugin("VolumeDriver.Nothing")
    answer = daemon.api("GET", "/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = Figures(answer.body.decode())
    open_answer = daemon.api("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    again = Figures(open_answer.body.decode(), openmetrics.text_string_to_metric_families)
    assert set(again.samples) >= {key for key in found.samples if key[0].startswith("voldriver_pool")}
    for each in (found, again):
        assert each("voldriver_pool_volumes", pool="plain", driver="directory") == 1
        assert each("voldriver_requests_total", door="plugin", method="Get", status="200") == 1
        assert each("voldriver_requests_total", door="plugin", method="other", status="404") == 1
        assert each("voldriver_verb_duration_seconds_count", verb="create", driver="directory", result="ok") == 1
    assert time.time() - 600 < (found("process_start_time_seconds") or 0) < time.time() + 1


@pytest.mark.root
def test_nothing_but_reading_is_allowed(daemon: Running) -> None:
    head = daemon.api("HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")
    for method in ("POST", "PUT", "DELETE"):
        refused = daemon.api(method, "/metrics")
        assert (refused.status, refused.body["code"], refused.headers["Allow"]) == (
            405,
            "MethodNotAllowed",
            "GET, HEAD",
        )
    assert daemon.api("GET", "/metrics/x").status == 404


@pytest.mark.root
def test_what_is_long_is_compressed_for_who_reads_that(daemon: Running) -> None:
    answer = daemon.api("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    assert (answer.status, answer.body[:2]) == (200, b"\x1f\x8b")
    tag = answer.headers["ETag"]
    assert tag
    assert daemon.api("GET", "/metrics", headers={"If-None-Match": "*"}).status == 304


@pytest.mark.root
def test_on_tcp_a_key_is_needed_and_a_read_only_one_will_do(daemon: Running, port: int) -> None:
    with Tcp(port) as stranger:
        refused = stranger("GET", "/metrics")
        assert (refused.status, b"voldriver_" in str(refused.body).encode()) == (401, False)
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    with Tcp(port, make_key(daemon, name="reader", role="read-only")) as reader:
        assert b"voldriver_build_info" in reader("GET", "/metrics").body
        assert reader("POST", "/metrics").status == 403
    counted = Figures(daemon.api("GET", "/metrics").body.decode())
    assert counted("voldriver_requests_total", door="api", method="GET", status="401") == 1


@pytest.mark.root
def test_the_commands_of_the_docs_work(daemon: Running, tmp_path: Path) -> None:
    places = {"/run/voldriver/api.sock": str(daemon.api_socket), "/var/lib/node_exporter": str(tmp_path)}
    commands = re.findall(r"^ {4}\$ ((?:curl|voldriver) .*)", DOCS.read_text(), re.MULTILINE)
    for theirs, ours in places.items():
        commands = [command.replace(theirs, ours) for command in commands]
    scrape, key, write = map(shlex.split, commands)
    for argv in (scrape, write):
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert shown == ""
    assert 'pool="plain"' in (tmp_path / "voldriverd.prom").read_text()
    made = daemon.cli(*key[1:]).stdout
    assert (made.count("\n"), daemon.api("GET", "/v1/apikeys?name=prometheus").body["data"][0]["role"]) == (
        2,
        "read-only",
    )


def test_a_daemon_imports_the_library_for_who_asks_alone() -> None:
    program = "import sys, voldriverd.daemon; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
