"""Holders of volumes through the service: dockerd's calls while verbs run, and long after it asked."""

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.engines import Bench, bench_on
from tests.memory import Memory
from tests.serving import PATIENCE_S, serve, until
from voldriverd import names
from voldriverd.engine import creation, mounts, trash
from voldriverd.engine.context import Engine
from voldriverd.engine.mounts import SETTLING_S
from voldriverd.errors import InUse
from voldriverd.kernel import mount
from voldriverd.service import Service

pytestmark = pytest.mark.root

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
LATER = START + timedelta(seconds=10 * SETTLING_S)


@pytest.fixture
def bench(memory_root: Path) -> Iterator[Bench]:
    with bench_on(memory_root) as bench:
        bench.now = lambda: START
        bench.restart()
        bench.create("db")
        yield bench


@pytest.fixture
def service(bench: Bench) -> Iterator[Service]:
    service = Service(bench.engine)
    yield service
    assert asyncio.run(service.stop(within_s=5))


@pytest.fixture
def asker() -> Iterator["subprocess.Popen[bytes]"]:
    """Give a process in our mount namespace, as dockerd is one."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def holders(bench: Bench) -> list[str]:
    return [held.holder for held in bench.store.mounts(bench.volume("db").id)]


def is_mounted(bench: Bench) -> bool:
    return mount.at(bench.engine.mounts / bench.volume("db").tree) is not None


def reconciled_later(bench: Bench, service: Service) -> None:
    """Let a long time pass, then reconcile."""
    bench.now = lambda: LATER
    object.__setattr__(bench.engine, "now", bench.now)
    asyncio.run(service.reconcile())


def test_unmount_lets_the_holder_go_and_answers_although_a_verb_works_on_the_volume(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldriverd.service.UNMOUNT_ANSWER_S", 0.05)

    async def unmount_meanwhile() -> tuple[list[str], bool]:
        service, volume = Service(bench.engine), bench.volume("db")
        await service.mount(volume.id, "container")
        async with service._locks.hold(volume.id, "resize", what="cannot resize", wait_s=1):
            await service.unmount(volume.id, "container")
            found = holders(bench), is_mounted(bench)
        await service.stop(within_s=5)
        return found

    assert asyncio.run(unmount_meanwhile()) == ([], True)
    assert not is_mounted(bench), "it goes on when the verb has ended"


def test_a_holder_is_kept_while_the_process_that_asked_lives(
    bench: Bench, service: Service, asker: "subprocess.Popen[bytes]"
) -> None:
    asyncio.run(service.mount(bench.volume("db").id, "copy-up", peer_pid=asker.pid))
    reconciled_later(bench, service)
    assert holders(bench) == ["copy-up"]
    assert is_mounted(bench)


def test_a_holder_of_after_the_look_is_kept_however_long_the_round_takes(
    bench: Bench, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    used_keys = mounts.used_keys

    def look_before(engine: Engine) -> frozenset[str]:
        found = used_keys(engine)
        bench.mount("db", "container")
        bench.now = lambda: LATER  # another volume took so long to flush
        object.__setattr__(engine, "now", bench.now)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(mounts, "used_keys", look_before)
        asyncio.run(service.reconcile())
    assert holders(bench) == ["container"]
    assert is_mounted(bench)
    asyncio.run(service.reconcile())
    assert holders(bench) == [], "nobody has it mounted, and this look is younger"


def test_a_holder_is_forgotten_when_the_process_that_asked_has_ended(
    bench: Bench, service: Service, asker: "subprocess.Popen[bytes]"
) -> None:
    asyncio.run(service.mount(bench.volume("db").id, "copy-up", peer_pid=asker.pid))
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    reconciled_later(bench, service)
    assert holders(bench) == []
    assert not is_mounted(bench)


def test_another_process_under_the_pid_of_the_one_that_asked_keeps_no_holder(
    bench: Bench, service: Service, asker: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(service.mount(bench.volume("db").id, "copy-up", peer_pid=asker.pid))
    monkeypatch.setattr("voldriverd.kernel.process.started", lambda _: os.getpid())
    reconciled_later(bench, service)
    assert holders(bench) == []


def test_a_holder_that_let_go_is_kept_by_nobody(
    bench: Bench, service: Service, asker: "subprocess.Popen[bytes]"
) -> None:
    volume = bench.volume("db")

    async def copied() -> None:
        await service.mount(volume.id, "copy-up", peer_pid=asker.pid)
        await service.unmount(volume.id, "copy-up")
        await service.mount(volume.id, "container")

    asyncio.run(copied())
    reconciled_later(bench, service)
    assert holders(bench) == []


def test_a_holder_that_an_earlier_dockerd_left_is_not_kept_by_the_next_one(
    bench: Bench, service: Service, asker: "subprocess.Popen[bytes]"
) -> None:
    volume = bench.volume("db")

    async def mounted_again_under_the_old_id() -> None:
        await service.mount(volume.id, "container", peer_pid=asker.pid)
        asker.send_signal(signal.SIGKILL)
        asker.wait()
        await service.mount(volume.id, "container", peer_pid=os.getpid())
        await service.unmount(volume.id, "container", peer_pid=os.getpid())

    asyncio.run(mounted_again_under_the_old_id())
    assert holders(bench) == ["container"]
    reconciled_later(bench, service)
    assert holders(bench) == []
    assert not is_mounted(bench)


def test_a_clone_of_a_volume_whose_name_another_has_taken_meanwhile_is_refused(bench: Bench) -> None:
    """What it would be made from is not what it waited for, and anybody might mount that while it is copied."""
    request = creation.Request("copy", names.parse_options({"from": "db"}), {"from": "db"})
    first = bench.volume("db")

    async def clone(service: Service) -> None:
        async with service._locks.hold(first.id, "remove", what="cannot remove", wait_s=1):
            cloning = asyncio.create_task(service.create(request, answer_s=PATIENCE_S))
            await until(lambda: service._locks._entries[first.id].users == 2)
            trash.remove(bench.engine, first)
            bench.create("db")
        with pytest.raises(InUse, match="cannot clone volume db: another volume has taken its name meanwhile"):
            await cloning

    serve(bench, clone)
    assert bench.store.volume_named("copy") is None


def test_what_nobody_asked_for_keeps_the_reason_of_what_failed_after_its_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = bench.volume("db")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def resize(service: Service) -> tuple[str | None, str | None]:
        await service.mount(volume.id, "container")
        await service.mount(volume.id, "other")
        with monkeypatch.context() as patch:
            patch.setattr(Memory, "resize", fail)
            await service.resize(volume.id, 1 << 30, answer_s=0)
            await until(lambda: service.runner.fault(f"1v{volume.id}"))
        await service.reconcile()
        await service.unmount(volume.id, "other")
        kept = service.runner.fault(f"1v{volume.id}")
        await service.resize(volume.id, 1 << 30)
        return kept, service.runner.fault(f"1v{volume.id}")

    kept, later = serve(bench, resize)
    assert kept == "cannot resize volume db: no space is left in the pool"
    assert later is None, "it has been resized"
