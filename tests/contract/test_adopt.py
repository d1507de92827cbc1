"""adopt: a directory outside of the pool becomes a tree, or is told to be none for this driver."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract import content
from tests.contract.conftest import Pool
from tests.contract.pools import of_driver, real
from tests.scratch import Scratch
from voldriverd.backup.faults import Cancelled
from voldriverd.driver import Adopted, Key, TreeOptions
from voldriverd.errors import Exists
from voldriverd.kernel import btrfs, tree

pytestmark = [pytest.mark.root, real()]

EXPECTED = {"btrfs": Adopted.COPY, "directory": Adopted.COPY, "loop": Adopted.NOT}


def ignore(_done_bytes: int) -> None:
    pass


def adopt(pool: Pool, source: Path, *, read_only: bool = False, options: TreeOptions | None = None) -> Adopted:
    completed = pool.driver.complete(options or TreeOptions())
    return pool.driver.adopt(Key("v1.1"), source, completed, read_only=read_only, advance=ignore)


def expected(pool: Pool) -> Adopted:
    return EXPECTED[pool.kind.name.partition("-")[0]]


@pytest.fixture
def beside(pool: Pool) -> Iterator[Path]:
    """A directory on the pool's file system, not in the pool."""
    place = pool.place / f"beside-{uuid.uuid4().hex}"
    place.mkdir()
    yield place
    tree.vanish(place)


@contextmanager
def subvolume_beside(pool: Pool) -> Iterator[Path]:
    """Have a subvolume of the pool's file system, not in the pool, whose `file` says `content`."""
    name = f"outside-{uuid.uuid4().hex}"
    with btrfs.opened(pool.place) as place_fd:
        btrfs.create(place_fd, name)
        try:
            (pool.place / name / "file").write_bytes(b"content")
            yield pool.place / name
        finally:
            btrfs.destroy(place_fd, name)


def test_a_directory_of_the_same_file_system_is_copied_whole_and_stays(pool: Pool, beside: Path) -> None:
    content.fill(beside)
    before = content.likeness(beside)
    adopted = adopt(pool, beside)
    assert adopted is expected(pool)
    assert content.likeness(beside) == before
    assert pool.driver.trees() == (set() if adopted is Adopted.NOT else {"v1.1"})
    if adopted is not Adopted.NOT:
        assert content.likeness(pool.attach("v1.1")) == before


def test_a_directory_of_another_file_system_is_not_taken(pool: Pool, scratch: Scratch) -> None:
    elsewhere = scratch.make("ext4")
    assert adopt(pool, elsewhere) is Adopted.NOT
    assert pool.driver.trees() == set()


def test_a_key_that_exists_is_refused(pool: Pool, beside: Path) -> None:
    pool.create("v1.1")
    with pytest.raises(Exists):
        adopt(pool, beside)


def test_what_the_watcher_raises_passes_through_and_leaves_nothing(pool: Pool, beside: Path) -> None:
    (beside / "file").write_bytes(b"content")

    def stop(_done_bytes: int) -> None:
        raise Cancelled

    if expected(pool) is Adopted.NOT:
        assert adopt(pool, beside) is Adopted.NOT
        return
    with pytest.raises(Cancelled):
        pool.driver.adopt(Key("v1.1"), beside, TreeOptions(), read_only=False, advance=stop)
    assert pool.driver.trees() == set()
    assert pool.reopen().trees() == set()


@of_driver("btrfs")
def test_a_subvolume_is_snapshotted_by_btrfs_read_only_if_wanted(pool: Pool) -> None:
    with subvolume_beside(pool) as source:
        assert adopt(pool, source, read_only=True) is Adopted.INSTANT
        (source / "file").write_bytes(b"later")
    path = pool.attach("v1.1")
    assert (path / "file").read_bytes() == b"content"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").touch()


@of_driver("btrfs")
def test_a_subvolume_is_copied_where_a_snapshot_could_not_have_the_options(pool: Pool) -> None:
    with subvolume_beside(pool) as source:
        assert adopt(pool, source, options=TreeOptions(compression="zstd")) is Adopted.COPY
    assert (pool.attach("v1.1") / "file").read_bytes() == b"content"
