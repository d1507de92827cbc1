"""What survives power loss: a call's effect when it returns, creations and removals after `sync`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract import content
from tests.contract.conftest import Pool
from tests.contract.pools import promising, real
from tests.contract.sending import filled, receive, send, snapshot
from tests.scratch import Scratch, unmount_under
from voldriverd.driver import Capability, Key, StreamFormat, TreeOptions

pytestmark = [pytest.mark.root, real()]

Cut = Callable[[], Pool]


@pytest.fixture
def cut(pool: Pool, scratch: Scratch, session_scratch: Scratch, tmp_path: Path) -> Iterator[Cut]:
    """Yield a function that cuts the power and gives the pool as it comes back."""
    mounts = tmp_path / "mounts-after"
    yield lambda: pool.after_power_cut(scratch, session_scratch, mounts)
    unmount_under(mounts)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_clone_survives_with_all_its_content(pool: Pool, cut: Cut, *, read_only: bool) -> None:
    pool.create("v1.1")
    (pool.attach("v1.1") / "file").write_bytes(b"content")
    pool.driver.detach(Key("v1.1"))
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    after = cut()
    assert after.driver.trees() == {"v1.1", "s1"}
    assert after.read("s1", "file") == b"content"


@pytest.mark.parametrize("wanted", ["its own", "tar"])
def test_a_received_tree_survives_with_all_its_content(pool: Pool, cut: Cut, wanted: str) -> None:
    filled(pool, "v1.1", content.fill)
    snapshot(pool, "v1.1", "s1")
    expected = content.likeness(pool.attach("s1", read_only=True))
    form = pool.driver.formats[0] if wanted == "its own" else StreamFormat.TAR
    receive(pool.driver, "v2.1", send(pool.driver, "s1", wanted=form))
    after = cut()
    assert "v2.1" in after.driver.trees()
    assert content.likeness(after.attach("v2.1", read_only=True)) == expected


def test_creations_survive_a_sync(pool: Pool, cut: Cut) -> None:
    pool.create("v1.1", TreeOptions(uid=12, mode=0o700))
    pool.create("v2.1")
    pool.driver.sync()
    after = cut()
    assert after.driver.trees() == {"v1.1", "v2.1"}
    assert after.attach("v1.1").stat().st_uid == 12


def test_removals_survive_a_sync(pool: Pool, cut: Cut) -> None:
    pool.create("v1.1")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.driver.sync()
    pool.driver.remove(Key("v1.1"))
    pool.driver.remove(Key("s1"))
    pool.driver.sync()
    assert cut().driver.trees() == set()


def test_a_removed_tree_is_whole_if_it_is_back(pool: Pool, cut: Cut) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.sync()
    pool.driver.remove(Key("v1.1"))
    after = cut()
    assert [after.read(key, "file") for key in after.driver.trees()] in ([], [b"content"])


def test_a_created_tree_is_empty_or_absent(pool: Pool, cut: Cut) -> None:
    pool.create("v1.1")
    after = cut()
    assert [after.names(key) for key in after.driver.trees()] in ([], [set()])


def test_what_was_fsynced_in_an_attached_tree_survives(pool: Pool, cut: Cut) -> None:
    pool.create("v1.1")
    with (pool.attach("v1.1") / "file").open("wb") as file:
        file.write(b"content")
        file.flush()
        os.fsync(file.fileno())
        after = cut()
    assert after.read("v1.1", "file") == b"content"


@promising(Capability.SIZE)
def test_a_new_size_survives(pool: Pool, cut: Cut) -> None:
    pool.create("v1.1", TreeOptions(size_bytes=64 << 20))
    pool.driver.resize(Key("v1.1"), 96 << 20)
    assert cut().driver.usage(Key("v1.1")).limit_bytes == 96 << 20
