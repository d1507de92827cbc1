"""COW and INSTANT, and calls for different keys in parallel."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.conftest import Pool
from tests.contract.pools import promising
from voldriverd.driver import Capability, Key
from voldriverd.kernel import fs

pytestmark = pytest.mark.root

_LARGE = 96 << 20


def _clone_s(pool: Pool, source: str) -> float:
    """Return the shortest time of three clones."""
    times = []
    for number in range(3):
        target = Key(f"{source}.clone{number}")
        started = time.perf_counter()
        pool.driver.clone(Key(source), target, read_only=False)
        times.append(time.perf_counter() - started)
    return min(times)


def test_the_capabilities_are_those_of_the_table(pool: Pool) -> None:
    assert pool.driver.capabilities == pool.kind.promises


@promising(Capability.COW)
def test_a_clone_takes_neither_time_nor_space_for_data(pool: Pool) -> None:
    pool.create("v1.1")
    pool.create("v2.1")
    pool.write("v2.1", "file", os.urandom(_LARGE))
    fs.sync_file_system(pool.root)
    _, free_before = fs.capacity(pool.root)
    small_s, large_s = _clone_s(pool, "v1.1"), _clone_s(pool, "v2.1")
    fs.sync_file_system(pool.root)
    _, free_after = fs.capacity(pool.root)
    assert free_before - free_after < _LARGE // 4
    assert large_s < 4 * small_s + 0.02


_WRITER = """
import os, sys
directory, acknowledged = sys.argv[1:]
log = os.open(directory + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
counter = os.open(directory + "/counter", os.O_WRONLY | os.O_CREAT)
done = os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
number = 0
while os.getppid() == int(os.environ["PARENT"]):
    number += 1
    os.write(log, b"%09d\\n" % number)
    os.fsync(log)
    os.pwrite(counter, b"%09d\\n" % number, 0)
    os.fsync(counter)
    os.pwrite(done, b"%09d\\n" % number, 0)
    if number == 1:
        print("ready", flush=True)
"""


@contextmanager
def _writer(directory: Path, acknowledged: Path) -> Iterator[None]:
    """Run a process that appends each number to a log, then writes it into a counter, each durable before the next."""
    argv = [sys.executable, "-c", _WRITER, str(directory), str(acknowledged)]
    environment = {**os.environ, "PARENT": str(os.getpid())}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()


@promising(Capability.INSTANT)
def test_a_clone_under_a_writer_is_one_instant(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    acknowledged = []
    with _writer(pool.attach("v1.1"), tmp_path / "acknowledged"):
        for number in range(8):
            acknowledged.append(int((tmp_path / "acknowledged").read_bytes()))
            pool.driver.clone(Key("v1.1"), Key(f"s{number}"), read_only=True)
    for number, least in enumerate(acknowledged):
        logged = pool.read(f"s{number}", "log").splitlines()
        counted = int(pool.read(f"s{number}", "counter"))
        assert [int(line) for line in logged] == list(range(1, len(logged) + 1))
        assert least <= counted <= len(logged) <= counted + 1


def test_calls_for_different_keys_may_run_in_parallel(pool: Pool) -> None:
    def live(number: int) -> bytes:
        pool.create(f"v{number}.1")
        pool.write(f"v{number}.1", "file", b"content %d" % number)
        pool.driver.clone(Key(f"v{number}.1"), Key(f"s{number}"), read_only=True)
        pool.driver.remove(Key(f"v{number}.1"))
        pool.driver.sync()
        return pool.read(f"s{number}", "file")

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(live, range(12))) == [b"content %d" % number for number in range(12)]
    assert pool.driver.trees() == {f"s{number}" for number in range(12)}
