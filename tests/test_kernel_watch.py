"""Work that takes long tells who watches its thread, and ends when that raises."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from tests.watchers import Enough, Watcher
from voldriverd.kernel import content, copying, run, watch

MIB = 1 << 20
STEP = "looks how much there is"


def test_nothing_is_told_and_nothing_ended_where_nobody_watches() -> None:
    watch.prepare(STEP, 7)
    watch.advance(7)


def test_who_watches_is_told_until_the_end_of_the_block() -> None:
    watcher = Watcher()
    with watch.watched(watcher):
        watch.advance()
        watch.prepare(STEP, 7)
        watch.advance(3)
        watch.advance(4)
    watch.advance(5)
    assert (watcher.totals, watcher.told_bytes) == ({STEP: 7}, {None: 0, STEP: 7})


def test_the_innermost_is_told_alone() -> None:
    outer, inner = Watcher(), Watcher()
    with watch.watched(outer):
        with watch.watched(inner):
            watch.advance(1)
        watch.advance(2)
    assert (outer.told_bytes, inner.told_bytes) == ({None: 2}, {None: 1})


def test_other_threads_are_not_watched() -> None:
    watcher = Watcher()
    with watch.watched(watcher):
        thread = threading.Thread(target=watch.advance, args=(1,))
        thread.start()
        thread.join()
    assert watcher.told_bytes == {}


def test_a_watcher_that_has_ended_the_work_is_forgotten() -> None:
    with pytest.raises(Enough), watch.watched(Watcher(ends_after=0)):
        watch.advance()
    watch.advance()


def test_a_copy_ends_where_it_is(tmp_path: Path) -> None:
    size_bytes = 40 * MIB
    (tmp_path / "source").write_bytes(os.urandom(size_bytes))
    watcher = Watcher(ends_after=1)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        with pytest.raises(Enough), watch.watched(watcher):
            content.Content().copy(source.fileno(), target.fileno(), size_bytes)
        assert 0 < target.seek(0, os.SEEK_END) < size_bytes


@pytest.mark.root
def test_a_copy_of_many_small_files_ends_with_the_next_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        (source / str(number)).write_bytes(b"x")
    with pytest.raises(Enough), watch.watched(Watcher(ends_after=3)):
        copying.copy_tree(source, tmp_path / "target", live=False)
    assert len(os.listdir(tmp_path / "target")) == 3


def test_the_ranges_of_a_sparse_file_are_told_one_by_one(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb+") as file:
        for number in range(20):
            os.pwrite(file.fileno(), b"x", number * MIB)
        watcher = Watcher()
        with watch.watched(watcher):
            assert len(list(content.segments(file.fileno(), 20 * MIB))) == 20
    assert watcher.heard >= 20


# Tools that may be killed.


def test_a_watched_tool_runs_to_its_end(tmp_path: Path) -> None:
    run.watched([sys.executable, "-S", "-c", f"print('x' * 1_000_000); open({str(tmp_path / 'file')!r}, 'w').close()"])
    assert (tmp_path / "file").exists()


def test_a_watched_tool_that_fails_is_quoted() -> None:
    program = "import sys; print('one'); print('two'); sys.exit(4)"
    with pytest.raises(run.ToolError, match="ended with status 4: one / two"):
        run.watched([sys.executable, "-S", "-c", program])


def test_a_watched_tool_may_have_other_good_ends() -> None:
    run.watched(["sh", "-c", "exit 1"], good=(0, 1))
    with pytest.raises(run.ToolError, match="ended with status 2"):
        run.watched(["sh", "-c", "exit 2"], good=(0, 1))


def test_a_watched_tool_that_takes_too_long_is_killed() -> None:
    with pytest.raises(run.ToolError, match="sleep did not end within 0 s") as caught:
        run.watched(["sleep", "1000"], timeout_s=0)
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_watched_tool_that_is_not_installed_is_told() -> None:
    with pytest.raises(FileNotFoundError):
        run.watched(["no-such-tool"])


def test_a_watched_tool_is_killed_when_nobody_wants_it_any_more(tmp_path: Path) -> None:
    class Patient(Watcher):
        def advance(self, more_bytes: int) -> None:
            super().advance(more_bytes)
            if (tmp_path / "pid").exists():
                raise Enough

    program = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 1000"
    with pytest.raises(Enough), watch.watched(Patient()):
        run.watched(["sh", "-c", program])
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
