"""Snapshots that several read at once: attached for all of them, detached after the last."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from voldriverd.driver import Driver, Key
from voldriverd.engine.reading import Readers
from voldriverd.errors import NotFound

KEY, OTHER = Key("s1"), Key("s2")


class Calls:
    """Stands in for a driver: notes its calls, and fails if two for one key come at once."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.attached: set[Key] = set()
        self._running: set[Key] = set()
        self._lock = threading.Lock()

    def attach(self, key: Key, *, read_only: bool) -> Path:
        assert read_only
        self._call("attach", key)
        self.attached.add(key)
        return Path(f"/mounts/{key}")

    def detach(self, key: Key) -> None:
        self._call("detach", key)
        self.attached.discard(key)

    def _call(self, verb: str, key: Key) -> None:
        with self._lock:
            assert key not in self._running, f"two calls for {key} at once"
            self._running.add(key)
            self.made.append(f"{verb} {key}")
        threading.Event().wait(0.0001)  # lets other threads come
        with self._lock:
            self._running.discard(key)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def driver(calls: Calls) -> Driver:
    return cast("Driver", calls)  # only attach and detach are used


def test_a_reader_attaches_and_detaches(calls: Calls) -> None:
    with Readers().attached(driver(calls), KEY) as path:
        assert path == Path("/mounts/s1")
        assert calls.attached == {KEY}
    assert calls.made == ["attach s1", "detach s1"]


def test_only_the_last_of_two_readers_detaches(calls: Calls) -> None:
    readers = Readers()
    first, second = readers.attached(driver(calls), KEY), readers.attached(driver(calls), KEY)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert calls.attached == {KEY}
    second.__exit__(None, None, None)
    assert calls.made == ["attach s1", "attach s1", "detach s1"]


def test_readers_of_different_snapshots_do_not_meet(calls: Calls) -> None:
    readers = Readers()
    with readers.attached(driver(calls), KEY):
        with readers.attached(driver(calls), OTHER):
            pass
        assert calls.attached == {KEY}


def test_a_tree_that_cannot_be_attached_is_not_counted(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def attach(_: Key, *, read_only: bool) -> Path:
        raise NotFound(f"there is none to attach read_only={read_only}")

    readers = Readers()
    with monkeypatch.context() as patch:
        patch.setattr(calls, "attach", attach)
        with pytest.raises(NotFound), readers.attached(driver(calls), KEY):
            pass
    with readers.attached(driver(calls), KEY):
        pass
    assert calls.made == ["detach s1", "attach s1", "detach s1"]
    assert readers._readings == {}


def test_a_tree_that_stays_busy_is_logged_and_forgotten(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def detach(_: Key) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(calls, "detach", detach)
    readers = Readers()
    with readers.attached(driver(calls), KEY):
        pass
    assert "verb=detach key=s1" in caplog.text
    assert readers._readings == {}


def test_many_readers_in_threads_never_find_the_tree_detached(calls: Calls) -> None:
    readers = Readers()

    def read(_: int) -> bool:
        with readers.attached(driver(calls), KEY):
            return KEY in calls.attached

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))
    assert calls.attached == set()
    assert readers._readings == {}
