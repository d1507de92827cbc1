"""Who else shows a directory: private copies of a mount count, those that propagation made do not."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
def _process(argv: Sequence[str]) -> Iterator[int]:
    """Run a process that says ready and ends when its input does; yields its pid."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()


def _namespace(propagation: str) -> AbstractContextManager[int]:
    """Run a process in a copy of our mount namespace; yields its pid."""
    return _process(["unshare", "-m", "--propagation", propagation, "sh", "-c", "echo ready && exec cat"])


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


def test_a_copy_of_a_propagated_copy_is_not_elsewhere(shared: Path) -> None:
    """A service may be started from a service: each namespace follows the one it was copied from."""
    script = "mount --make-rshared / && unshare -m --propagation slave sh -c 'echo ready && exec cat'; true"
    with _process(["unshare", "-m", "--propagation", "slave", "sh", "-c", script]) as pid:
        device = _mount_new(shared / "own")
        (grandchild,) = _children(pid)
        assert str(shared / "own") in {entry.mount_point for entry in mount.table(grandchild)}
        assert mount.elsewhere(device, "/", own=shared / "own") == []


def test_a_copy_through_another_mount_of_its_directory_is_not_elsewhere(shared: Path, tmp_path: Path) -> None:
    """As dockerd has what a managed plugin mounts."""
    other = tmp_path / "other"
    other.mkdir()
    mount.bind(shared, other, read_only=False)
    device = _mount_new(shared / "own")
    assert mount.at(other / "own")
    assert mount.elsewhere(device, "/", own=shared / "own") == []
    mount.unmount(shared / "own")
    assert mount.at(other / "own") is None, "that is why"


def test_a_bind_mount_of_the_same_name_in_another_directory_is_elsewhere(shared: Path, tmp_path: Path) -> None:
    device = _mount_new(shared / "own")
    other = tmp_path / "other" / "own"
    other.mkdir(parents=True)
    mount.bind(shared / "own", other, read_only=False)
    found = mount.elsewhere(device, "/", own=shared / "own")
    assert [entry.mount_point for _, entry in found] == [str(other)]
    (entry,) = (entry for _, entry in found)
    ours = mount.at(shared / "own")
    assert ours is not None
    assert entry.groups == ours.groups, "it would be taken for a copy by its group alone"


@pytest.mark.parametrize(("propagation", "is_seen"), [("slave", True), ("private", False)])
def test_what_is_mounted_is_seen_where_it_propagates_to(shared: Path, propagation: str, *, is_seen: bool) -> None:
    with _namespace(propagation) as pid:
        _mount_new(shared / "own")
        assert mount.is_seen(pid, shared / "own") is is_seen
        mount.unmount(shared / "own")
        assert not mount.is_seen(pid, shared / "own")
    assert not mount.is_seen(pid, shared / "own"), "nothing is mounted, and it has ended"


def test_a_process_that_has_ended_misses_nothing(shared: Path) -> None:
    with _namespace("private") as pid:
        _mount_new(shared / "own")
    assert mount.is_seen(pid, shared / "own")


def test_a_mount_in_the_namespace_of_a_single_thread_is_seen(tmp_path: Path) -> None:
    script = (
        "import ctypes, sys, threading\n"
        "def hold():\n"
        "    libc = ctypes.CDLL(None)\n"
        "    assert libc.unshare(0x200 | 0x20000) == 0\n"  # CLONE_FS | CLONE_NEWNS
        "    libc.mount(None, b'/', None, 1 << 18 | 1 << 14, None)\n"  # MS_PRIVATE | MS_REC
        "    assert libc.mount(b'none', sys.argv[1].encode(), b'tmpfs', 0, b'size=64k') == 0\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "threading.Thread(target=hold).start()\n"
    )
    with _process([sys.executable, "-c", script, str(tmp_path)]) as pid:
        assert [found for found, entry in mount.everywhere() if entry.mount_point == str(tmp_path)] == [pid]


def test_a_process_whose_mounts_cannot_be_seen_is_not_taken_for_one_without_any() -> None:
    look = "from voldriverd.kernel import mount; [*mount.everywhere()]"
    lacking = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    with subprocess.Popen(["sleep", "60"]) as other:
        done = subprocess.run([*lacking, sys.executable, "-c", look], capture_output=True, text=True, check=False)
        other.kill()
    assert "cannot be seen without CAP_SYS_PTRACE" in done.stderr


def test_a_chrooted_process_does_not_hide_the_mounts_of_its_namespace(tmp_path: Path) -> None:
    """What a process sees in its mount table ends at its root directory."""
    _mount_new(tmp_path / "outside")
    (tmp_path / "jail").mkdir()
    script = (
        "import os, subprocess, sys\n"
        "with subprocess.Popen(['cat']):\n"
        "    os.chroot(sys.argv[1])\n"
        "    print('ready', flush=True)\n"
    )
    with _process(["unshare", "-m", sys.executable, "-c", script, str(tmp_path / "jail")]) as pid:
        found = {found for found, entry in mount.everywhere() if entry.mount_point == str(tmp_path / "outside")}
        assert found == {os.getpid(), *_children(pid)}
    unmount_under(tmp_path)


def _children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.parametrize(
    "name", ["a b", "tab\there", "new\nline", "back\\slash", "car\rriage", "\udcff\udcfe", "é", "#"]
)
def test_odd_names_are_read_back_as_they_are(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    mount.mount("none", place, fs_type="tmpfs", data="size=64k")
    try:
        entry = mount.containing(place)
        assert entry.mount_point == str(place)
        assert mount.at(place) == entry
    finally:
        mount.unmount(place)


@pytest.mark.parametrize("name", ["plain", "a b", "new\nline", "back\\slash", "#"])
def test_a_directory_with_an_odd_name_is_found_elsewhere(tmp_path: Path, name: str) -> None:
    _mount_new(tmp_path / "fs")
    for place in (tmp_path / "fs" / name / "in it", tmp_path / "fs" / f"{name}er", tmp_path / "a", tmp_path / "b"):
        place.mkdir(parents=True)
    mount.bind(tmp_path / "fs" / name / "in it", tmp_path / "a", read_only=False)
    mount.bind(tmp_path / "fs" / f"{name}er", tmp_path / "b", read_only=False)
    found = mount.elsewhere(*mount.location(tmp_path / "fs" / name), own=tmp_path / "own")
    assert [entry.mount_point for _, entry in found] == [str(tmp_path / "a")]
    unmount_under(tmp_path)


def test_the_location_of_a_directory_is_its_path_inside_the_file_system(tmp_path: Path) -> None:
    device = _mount_new(tmp_path / "fs")
    (tmp_path / "fs" / "a" / "b").mkdir(parents=True)
    (tmp_path / "bound").mkdir()
    mount.bind(tmp_path / "fs" / "a", tmp_path / "bound", read_only=False)
    assert mount.location(tmp_path / "fs") == (device, "/")
    assert mount.location(tmp_path / "fs" / "a" / "b") == (device, "/a/b")
    assert mount.location(tmp_path / "bound" / "b") == (device, "/a/b")
    unmount_under(tmp_path)


def test_a_mount_of_a_directory_that_was_deleted_still_covers_its_path(tmp_path: Path) -> None:
    device = _mount_new(tmp_path / "fs")
    (tmp_path / "fs" / "tree").mkdir()
    (tmp_path / "bound").mkdir()
    mount.bind(tmp_path / "fs" / "tree", tmp_path / "bound", read_only=False)
    (tmp_path / "fs" / "tree").rmdir()
    entry = mount.at(tmp_path / "bound")
    assert entry is not None
    assert entry.root == "/tree//deleted"
    assert mount.covers(entry, device, "/tree")
    unmount_under(tmp_path)


def test_at_finds_the_uppermost_of_stacked_mounts(tmp_path: Path) -> None:
    _mount_new(tmp_path / "fs")
    mount.mount("upper", tmp_path / "fs", fs_type="tmpfs", data="size=64k")
    entry = mount.at(tmp_path / "fs")
    assert entry is not None
    assert entry.source == "upper"
    unmount_under(tmp_path)


def test_at_finds_nothing_where_nothing_is_mounted(tmp_path: Path) -> None:
    assert mount.at(tmp_path) is None


def test_a_read_only_bind_refuses_writes_and_its_source_takes_them(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    mount.bind(tmp_path / "source", tmp_path / "target", read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "target" / "file").touch()
    (tmp_path / "source" / "file").touch()
    assert (tmp_path / "target" / "file").exists()
    unmount_under(tmp_path)


def test_a_read_only_bind_that_fails_half_way_leaves_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: Path, *, read_only: bool) -> None:
        assert read_only
        raise PermissionError(1, "Operation not permitted", str(target))

    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    monkeypatch.setattr(mount, "set_read_only", refuse)
    with pytest.raises(PermissionError):
        mount.bind(tmp_path / "source", tmp_path / "target", read_only=True)
    assert mount.at(tmp_path / "target") is None


def test_making_a_mount_read_only_keeps_its_other_flags(tmp_path: Path) -> None:
    place = tmp_path / "fs"
    place.mkdir()
    mount.mount("none", place, fs_type="tmpfs", flags=mount.MS_NOSUID | mount.MS_NODEV | 8 | 1024, data="size=64k")
    before = mount.containing(place).options
    assert before == "rw,nosuid,nodev,noexec,noatime"
    mount.set_read_only(place, read_only=True)
    assert mount.containing(place).options == "ro,nosuid,nodev,noexec,noatime"
    mount.set_read_only(place, read_only=False)
    assert mount.containing(place).options == before
    mount.unmount(place)


def test_unmount_names_the_mount_point_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        mount.unmount(tmp_path)
    assert caught.value.filename == str(tmp_path)
    _mount_new(tmp_path / "fs")
    with (tmp_path / "fs" / "file").open("w"), pytest.raises(OSError, match="busy"):
        mount.unmount(tmp_path / "fs")
    mount.unmount(tmp_path / "fs")


def test_mount_names_the_mount_point_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such device") as caught:
        mount.mount("none", tmp_path, fs_type="nosuchfs")
    assert caught.value.filename == str(tmp_path)


def test_the_name_of_a_process_is_always_printable() -> None:
    script = "open('/proc/self/comm', 'wb').write(b'a\\nb\\xff'); print('ready', flush=True); input()"
    with _process([sys.executable, "-c", f"import sys; {script}"]) as pid:
        assert mount.process_name(pid) == "a?b\N{REPLACEMENT CHARACTER}"


def test_the_name_of_a_process_that_has_gone_is_a_question_mark() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert mount.process_name(process.pid) == "?"


def test_the_table_of_a_process_that_has_gone_is_an_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(OSError, match="No such"):
        mount.table(process.pid)
