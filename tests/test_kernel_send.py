"""Whole send streams, and what goes wrong while the kernel writes them."""

import fcntl
import os
import signal
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scratch import Scratch
from tests.sendstreams import commands
from tests.test_kernel_btrfs import make, snapshot
from tests.watchers import Enough, Watcher
from voldriverd.kernel import btrfs, pipe, receive, send, watch
from voldriverd.kernel.send import HEADER, MAGIC, Command

pytestmark = pytest.mark.root


@pytest.fixture
def place(session_scratch: Scratch, request: pytest.FixtureRequest) -> Path:
    """Return a new directory on btrfs."""
    directory = session_scratch.shared("kernel-send", "btrfs") / str(request.node.name)
    directory.mkdir()
    return directory


@pytest.fixture
def large(place: Path) -> Iterator[int]:
    """Return a descriptor of a snapshot whose stream does not fit into a pipe."""
    (make(place, "one") / "file").write_bytes(os.urandom(4 * pipe.BYTES))
    with btrfs.opened(snapshot(place / "one", "tree", read_only=True)) as fd:
        yield fd


def whole(fd: int, *, parent_id: int = 0, version: int = 1) -> bytes:
    with send.sending(fd, parent_id=parent_id, version=version) as reader:
        return reader.read(1 << 30)


def wait_until_the_pipe_is_full(reader: send.Reader) -> None:
    """Return when the kernel waits for the reader."""
    before = -1
    while (now := _waiting_bytes(reader)) < pipe.BYTES // 2 or now != before:
        before = now
        threading.Event().wait(0.02)


def _waiting_bytes(reader: send.Reader) -> int:
    found = fcntl.ioctl(reader._stream.fileno(), termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", found)[0])


@pytest.mark.parametrize("version", [1, 2])
def test_a_whole_stream_has_its_version_and_checksums(place: Path, version: int) -> None:
    (make(place, "one") / "file").write_bytes(b"content")
    with btrfs.opened(snapshot(place / "one", "tree", read_only=True)) as fd:
        data = whole(fd, version=version)
    assert data.startswith(MAGIC + version.to_bytes(4, "little"))
    found = commands(data)
    assert HEADER.unpack_from(found[-1])[1] == Command.END
    for command in found:
        _, number, _ = HEADER.unpack_from(command)
        assert command == receive._sealed(number, command[HEADER.size :])


def test_the_survey_is_as_long_as_the_stream_and_reads_no_data(large: int) -> None:
    length = len(whole(large))
    assert send.survey(large, parent_id=0) == pytest.approx(length, rel=0.05)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("length", [1, 7, 4_096, 1 << 30])
def test_a_position_is_the_file_that_was_made_last(place: Path, version: int, length: int) -> None:
    one = make(place, "one")
    for number in range(20):
        (one / f"{number}").write_bytes(os.urandom(1_000))
        (one / f"directory {number}").mkdir()
    with btrfs.opened(snapshot(one, "tree", read_only=True)) as fd:
        stream = whole(fd, version=version)
    position = send.Position()
    found = []
    for start in range(0, len(stream), length):
        position.advance(stream[start : start + length])
        found.append(position.inode)
    files = sorted(path.stat().st_ino for path in one.iterdir() if path.is_file())
    assert found == sorted(found)
    assert found[-1] == files[-1]
    if length < 100:  # no two files are made so close to each other
        assert sorted(set(found)) == [0, *files]


def test_who_watches_is_told_of_a_survey_and_can_end_it(place: Path) -> None:
    one = make(place, "one")
    for number in range(2_000):
        (one / f"{number}").touch()
    watcher = Watcher()
    with btrfs.opened(snapshot(one, "tree", read_only=True)) as fd:
        with watch.watched(watcher):
            length = send.survey(fd, parent_id=0)
        assert watcher.totals == {"looks how much there is": None}
        assert watcher.heard > 1
        with pytest.raises(Enough), watch.watched(Watcher(ends_after=0)):
            send.survey(fd, parent_id=0)
        assert send.survey(fd, parent_id=0) == length
    assert "btrfs-send" not in {thread.name for thread in threading.enumerate()}


def test_a_version_that_the_kernel_does_not_know_is_an_error(large: int) -> None:
    with pytest.raises(OSError, match="Protocol error"):
        whole(large, version=99)


def test_a_failure_is_raised_with_the_end_of_the_stream(place: Path) -> None:
    one = make(place, "one")
    with btrfs.opened(one) as fd, send.sending(fd, parent_id=0) as reader, pytest.raises(PermissionError):
        reader.read(1)


def test_a_base_that_has_gone_is_an_error(large: int) -> None:
    with pytest.raises(FileNotFoundError):
        whole(large, parent_id=1 << 40)


def test_a_block_that_raises_ends_the_sending(large: int) -> None:
    with pytest.raises(KeyError), send.sending(large, parent_id=0):
        raise KeyError
    assert "btrfs-send" not in {thread.name for thread in threading.enumerate()}


def test_a_tree_cannot_be_its_own_changes_but_is_sent(large: int) -> None:
    assert len(whole(large, parent_id=btrfs.subvolume_id(large))) < 1_000


def test_signals_do_not_spoil_a_stream(large: int) -> None:
    expected = whole(large)
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        with send.sending(large, parent_id=0) as reader:
            wait_until_the_pipe_is_full(reader)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # so that another thread would have to take it
            os.kill(os.getpid(), signal.SIGUSR1)
            assert reader.read(1 << 30) == expected
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


def test_a_stream_is_never_begun_again_when_the_process_was_stopped(large: int) -> None:
    expected = whole(large)
    pid = os.fork()
    if not pid:
        status = 2
        try:
            with send.sending(large, parent_id=0) as reader:
                wait_until_the_pipe_is_full(reader)
                os.kill(os.getpid(), signal.SIGSTOP)
                status = _outcome(reader, expected)
        finally:
            os._exit(status)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _outcome(reader: send.Reader, expected: bytes) -> int:
    try:
        return 3 if reader.read(1 << 30) != expected else 1
    except InterruptedError:
        return 0
