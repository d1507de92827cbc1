"""The check after each test: it names what was left behind, and nothing else."""

import os
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from tests import conftest
from tests.scratch import Scratch
from voldriverd.kernel import mount


@pytest.fixture
def left(temporary: Path) -> "Left":
    """Return what a test would be told that it left since now."""
    return Left(temporary)


class Left:
    """What is there now and was not when this was made."""

    def __init__(self, temporary: Path) -> None:
        self._temporary = temporary
        self._before = conftest._state(temporary.parent, temporary)

    def __call__(self) -> set[str]:
        return conftest._state(self._temporary.parent, self._temporary) - self._before


def test_nothing_left_is_nothing_told(left: Left) -> None:
    assert left() == set()


def test_a_descriptor_is_told_with_its_file(left: Left, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert left() == {f"fd {file.fileno()} of {tmp_path}/file"}


def test_a_thread_is_told_by_its_name(left: Left) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="worker")
    thread.start()
    assert left() == {f"thread worker ({thread.ident})"}
    done.set()
    thread.join()


def test_a_child_is_told_by_its_name(left: Left) -> None:
    with subprocess.Popen(["sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the kernel gives it its name a moment after Popen has returned
        assert f"child {process.pid} (sh)" in left()


def test_a_temporary_file_is_told_by_its_path(left: Left) -> None:
    with tempfile.NamedTemporaryFile() as file:
        assert f"file {file.name}" in left()


@pytest.mark.root
def test_a_mount_and_its_loop_device_are_told(left: Left, scratch: Scratch, tmp_path: Path) -> None:
    place = scratch.make("ext4", size_bytes=16 << 20)
    entry = mount.containing(place)
    device = os.path.basename(entry.source)
    assert left() == {f"mount {entry.mount_id} at {place}", f"{device} of {tmp_path}/scratch/fs0.img"}


@pytest.mark.root
def test_the_file_systems_of_the_session_are_no_leak(left: Left, session_scratch: Scratch) -> None:
    session_scratch.shared("leaks", "ext4")
    assert left() == set()
