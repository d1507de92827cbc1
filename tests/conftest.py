"""Markers, scratch file systems, and the check that no test leaves anything behind."""

import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import obstore
import pytest
from obstore.store import MemoryStore

from tests.engines import Bench, bench_on
from tests.s3 import Server
from tests.scratch import Scratch, loops_under
from voldriverd.kernel import mount

hypothesis.settings.register_profile("ours", deadline=None)  # a busy machine is no bug
hypothesis.settings.load_profile("ours")

_SESSION_SCRATCH = "session-scratch"
_CLEAR_TIMEOUT_S = 2.0
"""For whoever has a loop device open after its umount: udev, or another session that looks for its own one; and for
the connections of a store that was dropped, which threads of obstore close."""
_NEEDS = {
    "root": ("needs root", os.geteuid() == 0),
    "docker": ("needs root and dockerd", os.geteuid() == 0 and shutil.which("dockerd") is not None),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, the tests whose marker asks for what is not there."""
    for item in items:
        for marker, (reason, is_there) in _NEEDS.items():
            if item.get_closest_marker(marker) and not is_there:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give this session a TMPDIR of its own, so that a file left there is seen and is nobody else's."""
    directory = tmp_path_factory.mktemp("tmpdir", numbered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory))
        patch.setattr(tempfile, "tempdir", str(directory))
        yield directory


@pytest.fixture(scope="session", autouse=True)
def runtime_of_obstore() -> None:
    """Start the threads and descriptors of obstore, which live as long as the process, before a test can leave them."""
    obstore.put(MemoryStore(), "none", b"")


@pytest.fixture(scope="session")
def session_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scratch]:
    """Scratch file systems that live as long as the session; for `shared`, mostly."""
    scratch = Scratch(tmp_path_factory.mktemp(_SESSION_SCRATCH, numbered=False))
    yield scratch
    scratch.close()


@pytest.fixture(scope="session")
def quick(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where fsync costs nothing, for what is not about power: in memory if one may mount that."""
    return session_scratch.shared("quick", "tmpfs") if os.geteuid() == 0 else tmp_path_factory.mktemp("quick")


@pytest.fixture(scope="session")
def server(quick: Path) -> Iterator[Server]:
    """An S3 server for all tests that do not stop it, each with a prefix of its own."""
    with Server(quick / "s3") as server:
        yield server


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    """Scratch file systems for one test."""
    scratch = Scratch(tmp_path / "scratch")
    yield scratch
    scratch.close()


@pytest.fixture(scope="module")
def memory_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tmpfs of 64 MiB, for engines on the in-memory driver."""
    root = tmp_path_factory.mktemp("memory")
    mount.mount("tmpfs", root, fs_type="tmpfs", data="size=64m")
    yield root
    mount.unmount(root)


@pytest.fixture
def bench(memory_root: Path) -> Iterator[Bench]:
    """An engine on the in-memory driver."""
    with bench_on(memory_root) as bench:
        yield bench


@pytest.fixture(autouse=True)
def leaves_nothing(temporary: Path) -> Iterator[None]:
    """Fail a test that leaves a mount, loop device, descriptor, thread, child or file behind (about 3 ms)."""
    own = temporary.parent
    before = _state(own, temporary)
    yield
    left = _state(own, temporary) - before
    if left:
        gc.collect()  # what only a cycle of garbage holds is not left
        left = _state(own, temporary) - before
    end = time.monotonic() + _CLEAR_TIMEOUT_S
    while left and time.monotonic() < end and all(name.startswith("loop") or " of socket:" in name for name in left):
        time.sleep(0.01)
        left = _state(own, temporary) - before
    if left:
        pytest.fail("left behind: " + ", ".join(sorted(left)))


def _state(own: Path, temporary: Path) -> set[str]:
    return {*_mounts(own), *_loops(own), *_descriptors(), *_threads(), *_children(), *_files(temporary)}


def _mounts(own: Path) -> Iterator[str]:
    """Yield mounts on or from this session's directories; other sessions may run beside ours."""
    for entry in mount.table():
        if not _is_shared(entry.mount_point) and entry.mount_point.startswith(f"{own}/"):
            yield f"mount {entry.mount_id} at {entry.mount_point}"


def _loops(own: Path) -> Iterator[str]:
    for name, backing in loops_under(own).items():
        if not _is_shared(backing):
            yield f"{name} of {backing}"


def _is_shared(path: str) -> bool:
    """Tell whether this is a file system of the session (or its image), which any test may be the first to want."""
    return Path(path).parent.name == _SESSION_SCRATCH


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield f"fd {name} of {os.readlink(f'/proc/self/fd/{name}')}"
        except OSError:  # the listing's own descriptor
            continue


def _threads() -> Iterator[str]:
    return (f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate())


def _children() -> Iterator[str]:
    for task in os.listdir("/proc/self/task"):
        try:
            children = Path(f"/proc/self/task/{task}/children").read_text().split()
        except OSError:  # the thread ended
            continue
        yield from (f"child {pid} ({mount.process_name(int(pid))})" for pid in children)


def _files(temporary: Path) -> Iterator[str]:
    return (f"file {temporary / name}" for name in os.listdir(temporary))
