"""Whole or absent: each call is killed before each of its steps, and a new instance opens the pool."""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.contract import content, crash
from tests.contract.conftest import Pool
from tests.contract.pools import making_increments, promising, real
from tests.contract.sending import changed, filled, receive, send, snapshot
from tests.scratch import unmount_under
from voldriverd.driver import Capability, Key, TreeOptions

pytestmark = [pytest.mark.root, real()]

_CUTS_MAX = 40


def _cuts(pool: Pool, action: Callable[[], object]) -> Iterator[None]:
    """Kill the action before each of its steps, or evenly chosen ones; after each the pool has been opened anew."""
    steps = crash.count(action)
    assert 0 < steps < 255
    for number in sorted({round(index * (steps - 1) / _CUTS_MAX) for index in range(_CUTS_MAX + 1)}):
        _settle(pool)
        crash.cut(action, before=number)
        _settle(pool)
        yield


def _settle(pool: Pool) -> None:
    """Do what the engine does after a start: unmount what is in nobody's use."""
    pool.driver.open()
    for name in os.listdir(pool.mounts):
        pool.driver.detach(Key(name))


def _listing(root: Path) -> set[str]:
    return {os.path.join(directory, name) for directory, names, files in os.walk(root) for name in (*names, *files)}


def _leaves_no_trace(pool: Pool, before: set[str]) -> None:
    for key in {*pool.driver.trees(), Key("v1.1")}:  # also of an absent tree: it may sweep what a crash left
        pool.driver.remove(key)
    assert _listing(pool.root) == before
    assert os.listdir(pool.mounts) == []


def test_a_create_that_is_killed_makes_a_whole_tree_or_none(pool: Pool) -> None:
    before = _listing(pool.root)
    options = pool.driver.complete(TreeOptions(uid=5, mode=0o750))
    pool.create("v0.1", options)
    pool.driver.remove(Key("v0.1"))
    for _ in _cuts(pool, lambda: pool.driver.create(Key("v1.1"), options)):
        for key in pool.driver.trees():
            status = pool.attach(key).stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (5, 0o750)
            assert pool.names(key) == set()
        _leaves_no_trace(pool, before)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_clone_that_is_killed_makes_a_whole_tree_or_none(pool: Pool, *, read_only: bool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.write("v1.1", "more", b"content")
    before = _listing(pool.root)
    for _ in _cuts(pool, lambda: pool.driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)):
        if "s1" in pool.driver.trees():
            assert pool.names("s1") == {"file", "more"}
            assert pool.read("s1", "more") == b"content"
        pool.driver.remove(Key("s1"))
        assert pool.driver.trees() == {"v1.1"}
        assert _listing(pool.root) == before
        assert pool.read("v1.1", "file") == b"content"


def test_a_receive_that_is_killed_makes_a_whole_tree_or_none(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    expected = content.likeness(pool.attach("s1", read_only=True))
    pool.driver.detach(Key("s1"))
    pool.driver.sync()
    for wanted in pool.driver.formats:
        sent = send(pool.driver, "s1", wanted=wanted)
        receive(pool.driver, "v2.1", sent)
        pool.driver.remove(Key("v2.1"))
        before = _listing(pool.root)
        for _ in _cuts(pool, partial(receive, pool.driver, "v2.1", sent)):
            if "v2.1" in pool.driver.trees():
                assert content.likeness(pool.attach("v2.1", read_only=True)) == expected
            pool.driver.detach(Key("v2.1"))
            pool.driver.remove(Key("v2.1"))
            assert pool.driver.trees() == {"v1.1", "s1"}
            assert _listing(pool.root) == before


@making_increments()
def test_a_receive_that_is_killed_within_a_chain_leaves_a_whole_tree_or_none(pool: Pool) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "b1")
    changed(pool, "v1.1", content.change)
    snapshot(pool, "v1.1", "b2")
    chain = send(pool.driver, "b1"), send(pool.driver, "b2", "b1")
    expected = content.likeness(pool.attach("b2", read_only=True))
    pool.driver.detach(Key("b2"))
    before = _listing(pool.root)
    for _ in _cuts(pool, partial(receive, pool.driver, "v2.1", *chain)):
        if "v2.1" in pool.driver.trees():
            assert content.likeness(pool.attach("v2.1", read_only=True)) == expected
        pool.driver.detach(Key("v2.1"))
        pool.driver.remove(Key("v2.1"))
        assert _listing(pool.root) == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_send_that_is_killed_leaves_nothing(pool: Pool, after: int) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    pool.driver.sync()
    before = _listing(pool.root)

    def send_and_die() -> None:
        with pool.driver.send(Key("s1"), wanted=wanted) as stream:
            for _ in range(after):
                next(stream.parts, None)
            os.kill(os.getpid(), signal.SIGKILL)

    for wanted in pool.driver.formats:
        crash.cut(send_and_die, before=10_000)
        _settle(pool)
        assert _listing(pool.root) == before
        assert os.listdir(pool.mounts) == ["v1.1"]
        receive(pool.driver, "v2.1", send(pool.driver, "s1", wanted=wanted))
        pool.driver.remove(Key("v2.1"))


def test_a_remove_that_is_killed_leaves_a_whole_tree_or_none(pool: Pool) -> None:
    before = _listing(pool.root)

    def make_and_remove() -> None:
        if "v1.1" in pool.driver.trees():
            pool.driver.remove(Key("v1.1"))

    def make() -> None:
        pool.create("v1.1")
        pool.write("v1.1", "file", b"content")

    make()
    for _ in _cuts(pool, make_and_remove):
        if "v1.1" in pool.driver.trees():
            assert pool.read("v1.1", "file") == b"content"
        _leaves_no_trace(pool, before)
        make()


def test_attach_and_detach_that_are_killed_can_be_repeated(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    before = _listing(pool.root)

    def attach_and_detach() -> None:
        pool.attach("v1.1")
        pool.driver.detach(Key("v1.1"))

    for _ in _cuts(pool, attach_and_detach):
        assert pool.read("v1.1", "file") == b"content"
        assert os.listdir(pool.mounts) == ["v1.1"], "the mount point stays, what is mounted aside goes"
        assert not os.path.ismount(pool.mounts / "v1.1")
        assert _listing(pool.root) == before


@promising(Capability.SIZE)
def test_a_resize_that_is_killed_leaves_the_old_size_or_the_new_and_can_be_repeated(pool: Pool) -> None:
    pool.create("v1.1", TreeOptions(size_bytes=64 << 20))
    pool.write("v1.1", "file", b"content")
    sizes = [96 << 20]

    def resize() -> None:
        pool.driver.resize(Key("v1.1"), sizes[-1])

    for number, _ in enumerate(_cuts(pool, resize)):
        assert pool.driver.usage(Key("v1.1")).limit_bytes in {64 << 20, *sizes}
        pool.driver.resize(Key("v1.1"), sizes[-1])
        assert pool.driver.usage(Key("v1.1")).limit_bytes == sizes[-1]
        assert pool.read("v1.1", "file") == b"content"
        sizes.append((97 + number) << 20)
    unmount_under(pool.mounts)
