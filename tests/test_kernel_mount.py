"""Who else shows a directory: private copies of a mount count, those that propagation made do not."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scratch import unmount_under
from voldriverd.kernel import mount

pytestmark = pytest.mark.root


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """Return a directory whose mounts propagate to the namespaces that are copied from ours."""
    directory = tmp_path / "shared"
    directory.mkdir()
    mount.bind(directory, directory, read_only=False)
    subprocess.run(["mount", "--make-shared", str(directory)], check=True)
    yield directory
    unmount_under(tmp_path)


@contextmanager
def _namespace(propagation: str) -> Iterator[int]:
    """Run a process in a copy of our mount namespace; yields its pid."""
    argv = ["unshare", "-m", "--propagation", propagation, "sh", "-c", "echo ready && exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()


def _mount_new(place: Path) -> str:
    """Mount a new file system and return its device."""
    place.mkdir()
    mount.mount("none", place, fs_type="tmpfs", data="size=64k")
    return mount.containing(place).device


@pytest.mark.parametrize("propagation", ["slave", "shared"])
def test_a_propagated_copy_of_our_own_mount_is_not_elsewhere(shared: Path, propagation: str) -> None:
    with _namespace(propagation) as pid:
        device = _mount_new(shared / "own")
        assert str(shared / "own") in {entry.mount_point for entry in mount.table(pid)}
        assert mount.elsewhere(device, "/", own=shared / "own") == []


def test_a_private_copy_of_our_own_mount_is_elsewhere(shared: Path) -> None:
    device = _mount_new(shared / "own")
    with _namespace("private") as pid:
        found = mount.elsewhere(device, "/", own=shared / "own")
        assert [(found_pid, entry.mount_point) for found_pid, entry in found] == [(pid, str(shared / "own"))]


def test_a_private_copy_is_elsewhere_also_when_our_own_mount_has_gone(shared: Path) -> None:
    device = _mount_new(shared / "own")
    with _namespace("private") as pid:
        mount.unmount(shared / "own")
        assert [found_pid for found_pid, _ in mount.elsewhere(device, "/", own=shared / "own")] == [pid]


def test_a_mount_of_a_directory_below_is_elsewhere_and_one_of_a_neighbour_is_not(shared: Path) -> None:
    device = _mount_new(shared / "own")
    for name in ("below", "neighbour"):
        (shared / name).mkdir()
        (shared / "own" / "tree" / name).mkdir(parents=True)
    (shared / "own" / "trees").mkdir()
    mount.bind(shared / "own" / "tree" / "below", shared / "below", read_only=False)
    mount.bind(shared / "own" / "trees", shared / "neighbour", read_only=False)
    found = mount.elsewhere(device, "/tree", own=shared / "own")
    assert [entry.mount_point for _, entry in found] == [str(shared / "below")]
