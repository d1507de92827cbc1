"""Tools that are fed or read while they run: to their end, with their last words, and within a limit."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from voldriverd.kernel import pipe, run

_MIB = bytes(range(256)) * 4_096


def python(program: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os, sys\n{program}"]


def feed_much(argv: list[str]) -> None:
    with run.feeding(argv) as feed:
        for _ in range(10):
            feed.write(_MIB)


def test_a_tool_gets_all_that_is_written_and_then_the_end(tmp_path: Path) -> None:
    with run.feeding(["tee", str(tmp_path / "file")]) as feed:
        for _ in range(5):
            feed.write(_MIB)
        feed.write(b"")
        feed.write(memoryview(b"end"))
    assert (tmp_path / "file").read_bytes() == _MIB * 5 + b"end"


def test_a_tool_has_ended_after_the_block(tmp_path: Path) -> None:
    program = f"sys.stdin.buffer.read(); open({str(tmp_path / 'file')!r}, 'w').close()"
    with run.feeding(python(program)) as feed:
        feed.write(b"something")
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("written", [b"", b"x", _MIB * 5])
def test_a_fed_tool_that_fails_is_quoted(written: bytes) -> None:
    with (
        pytest.raises(run.ToolError, match="ended with status 3: one / two"),
        run.feeding(python("os.write(2, b'one\\ntwo\\n'); sys.exit(3)")) as feed,
    ):
        feed.write(written)


def test_a_tool_that_ends_well_before_its_input_is_an_error() -> None:
    with pytest.raises(run.ToolError, match="true ended before its input") as caught:
        feed_much(["true"])
    assert caught.value.errno == errno.EPIPE


def test_a_tool_that_takes_nothing_is_given_up_and_killed() -> None:
    with (
        pytest.raises(run.ToolError, match="sleep stood still for 0 s") as caught,
        run.feeding(["sleep", "1000"], stall_s=0.2) as feed,
    ):
        feed.write(_MIB * 2)
    assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize("closes", ["", "os.close(2); "])
def test_a_tool_that_does_not_end_with_its_input_is_given_up_and_killed(closes: str) -> None:
    program = f"{closes}sys.stdin.buffer.read(); __import__('signal').pause()"
    with pytest.raises(run.ToolError, match="did not end within 0 s"), run.feeding(python(program), stall_s=0.4):
        pass


def test_what_the_block_raises_kills_the_tool_and_passes_through(tmp_path: Path) -> None:
    program = f"sys.stdin.buffer.read(); open({str(tmp_path / 'file')!r}, 'w').close()"
    with pytest.raises(KeyError), run.feeding(python(program)):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_tool_that_says_more_than_a_pipe_holds_is_heard_and_its_last_words_kept() -> None:
    program = (
        "data = sys.stdin.buffer.read(10); os.write(2, b'x' * 500_000 + b'last'); sys.stdin.buffer.read(); sys.exit(1)"
    )
    with pytest.raises(run.ToolError, match=r"x{1996}last$") as caught:
        feed_much(python(program))
    assert len(str(caught.value)) < 2_200


def test_a_killed_tool_is_an_error() -> None:
    program = f"os.kill(os.getpid(), {signal.SIGKILL.value})"
    with pytest.raises(run.ToolError, match="status -9"), run.feeding(python(program)):
        pass
    with run.reading(python(program)) as output, pytest.raises(run.ToolError, match="status -9"):
        output.read(1)


@pytest.mark.parametrize("block", [run.feeding, run.reading])
def test_a_tool_that_is_not_installed_is_an_error(block: Callable[..., object]) -> None:
    with pytest.raises(FileNotFoundError), block(["no-such-tool"]):  # type: ignore[attr-defined]  # both give contexts
        pass


def test_output_comes_in_the_lengths_that_are_asked_for() -> None:
    with run.reading(python(f"for _ in range(3): sys.stdout.buffer.write(bytes({1 << 20}) + b'x')")) as output:
        assert output.read(0) == b""
        assert [len(output.read((2 << 20) + 1)) for _ in range(3)] == [(2 << 20) + 1, (1 << 20) + 2, 0]
        assert output.read(10) == b""


def test_a_read_tool_that_fails_is_quoted_with_its_end_and_not_before() -> None:
    program = "os.write(1, b'data'); os.write(2, b'word'); sys.exit(2)"
    with run.reading(python(program)) as output:
        assert output.read(4) == b"data"
        with pytest.raises(run.ToolError, match="status 2: word"):
            output.read(1)


@pytest.mark.parametrize("good", [(1,), (0, 1)])
def test_other_statuses_may_be_good(good: tuple[int, ...]) -> None:
    with run.reading(["false"], good=good) as output:
        assert output.read(1) == b""
    with run.feeding(["false"], good=good):
        pass


def test_a_read_tool_that_says_nothing_is_given_up_and_killed() -> None:
    with pytest.raises(run.ToolError, match="stood still"), run.reading(["sleep", "1000"], stall_s=0.2) as output:
        output.read(1)


def test_a_reader_that_leaves_early_ends_the_tool() -> None:
    with run.reading(["cat", "/dev/zero"]) as output:
        assert output.read(3) == bytes(3)


def test_a_tool_gets_the_descriptors_that_are_passed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with (
        (tmp_path / "file").open("rb") as file,
        run.reading(["cat", f"/proc/self/fd/{file.fileno()}"], pass_fds=[file.fileno()]) as output,
    ):
        assert output.read(100) == b"content"


def test_a_tool_is_spared_by_a_signal_to_our_group() -> None:
    with run.reading(python("print(os.getpgid(0) == os.getpid())")) as output:
        assert output.read(100) == b"True\n"


def test_pipes_are_large() -> None:
    reading, writing = pipe.make()
    os.set_blocking(writing, False)
    assert os.write(writing, bytes(2 << 20)) == pipe.BYTES
    assert not os.get_inheritable(reading)
    os.close(reading)
    os.close(writing)
