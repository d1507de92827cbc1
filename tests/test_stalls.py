"""How long the event loop stands still, and that what blocks it is found in the daemons of the tests."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import unblocked
from tests.running import Running, pools_config
from voldriverd import stalls
from voldriverd.stalls import LIMIT_S, TICK_S, WINDOW_S, Stalls

BLOCKING = (
    "fd = os.open('/dev/null', 0)",
    "os.fsync(0)",
    "time.sleep(0.001)",
    "sqlite3.connect(':memory:').execute('SELECT 1')",
    "subprocess.run(['true'])",
    "run.run(['true'])",
    "ioctl.call(0, 0)",
    "mount.table()",
    "pathlib.Path('/proc/self/stat').read_text()",
    "pathlib.Path('/none').unlink(missing_ok=True)",
)
"""What a daemon of the tests must not do on its loop; each is tried in an interpreter that watches itself."""
PROGRAM = """
import asyncio, os, pathlib, sqlite3, subprocess, time
from tests import unblocked
from voldriverd.kernel import ioctl, mount, run
unblocked.watch_daemon()
async def main():
    {}
asyncio.run(main())
os._exit(0)
"""


def test_the_longest_is_kept_and_forgotten_by_the_minute_after_a_minute() -> None:
    found = Stalls()
    for length_s, now_s in ((0.05, 1.0), (0.2, 2.0), (0.1, 3.0)):
        found.note(length_s, now_s=now_s)
    assert (found.recent_s(), found.longest_s) == (0.2, 0.2)
    found.note(0.0, now_s=2.0 + WINDOW_S)
    assert (found.recent_s(), found.longest_s) == (0.1, 0.2)
    found.note(0.0, now_s=3.0 + WINDOW_S)
    assert (found.recent_s(), found.longest_s) == (0.0, 0.2)


def test_what_is_kept_of_a_minute_is_bounded() -> None:
    found = Stalls()
    for number in range(10_000):
        found.note(1.0 - number / 20_000, now_s=number * TICK_S)
    assert len(found._recent) <= WINDOW_S / TICK_S


def test_a_stall_over_the_limit_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = Stalls()
    found.note(LIMIT_S, now_s=1.0)
    found.note(0.4, now_s=2.0)
    assert [record.getMessage() for record in caplog.records] == [
        "verb=serve stall_ms=400 result=the event loop stood still"
    ]


def test_a_loop_that_is_blocked_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "TICK_S", 0.01)
    found = Stalls()

    async def work() -> None:
        watching = asyncio.create_task(found.watch())
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - it is what is to be found
        while found.longest_s == 0.0:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(work())
    assert 0.2 < found.recent_s() == found.longest_s


@pytest.mark.root
def test_the_daemon_tells_it(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with Running(tmp_path / "daemon", config=pools_config(plain=("directory", tmp_path / "pool"))) as daemon:
        host = daemon.api("GET", "/v1/hosts/1h1").body
        assert 0 <= host["stallMs"] <= host["longestStallMs"]
        assert "Longest stall" in daemon.cli("info").stdout


@pytest.mark.parametrize("statement", BLOCKING)
def test_what_blocks_the_loop_is_found(statement: str, tmp_path: Path) -> None:
    report = tmp_path / "blocked"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, unblocked.REPORT: str(report)},
    )
    assert "BlockingError: Blocking call to " in done.stderr
    assert report.read_text().startswith("Blocking call to ")


def test_what_does_not_block_it_is_let_be(tmp_path: Path) -> None:
    report = tmp_path / "blocked"
    statement = "await asyncio.to_thread(os.stat, '/')"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, unblocked.REPORT: str(report)},
    )
    assert (done.returncode, done.stderr, report.exists()) == (0, "", False)


def test_a_daemon_whose_loop_was_blocked_fails_its_test(tmp_path: Path) -> None:
    daemon = Running(tmp_path)
    daemon.blocked_file.write_text("Blocking call to os.fsync\n")
    with pytest.raises(AssertionError, match=r"os\.fsync"):
        daemon.close()
