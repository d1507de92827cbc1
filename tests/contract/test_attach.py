"""attach and detach: at mounts/<key>, repeatable, repaired when wrong, kept over a restart."""

import errno
import os
from pathlib import Path

import pytest

from tests.contract.conftest import Pool
from voldriverd.driver import Key
from voldriverd.errors import InUse, NotFound
from voldriverd.kernel import mount

pytestmark = pytest.mark.root


def _stack(path: Path) -> int:
    """Return how many mounts lie on top of each other there."""
    return sum(1 for entry in mount.table() if entry.mount_point == str(path))


def test_attach_mounts_the_tree_under_its_key(pool: Pool) -> None:
    pool.create("v1.1")
    assert pool.attach("v1.1") == pool.mounts / "v1.1"
    assert mount.at(pool.mounts / "v1.1") is not None


def test_what_is_written_through_one_attachment_is_there_at_the_next(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    assert pool.read("v1.1", "file") == b"content"


def test_attach_of_an_absent_tree_is_not_found_and_makes_no_mount_point(pool: Pool) -> None:
    with pytest.raises(NotFound, match=r"cannot attach tree v9\.9"):
        pool.attach("v9.9")
    assert os.listdir(pool.mounts) == []


def test_attach_may_be_repeated_and_mounts_once(pool: Pool) -> None:
    pool.create("v1.1")
    pool.attach("v1.1")
    assert pool.attach("v1.1") == pool.mounts / "v1.1"
    assert _stack(pool.mounts / "v1.1") == 1


def test_a_new_instance_finds_the_attachment(pool: Pool) -> None:
    pool.create("v1.1")
    path = pool.attach("v1.1")
    (path / "file").write_bytes(b"content")
    assert pool.reopen().attach(Key("v1.1"), read_only=False) == path
    assert _stack(path) == 1


def test_a_new_instance_can_detach(pool: Pool) -> None:
    pool.create("v1.1")
    path = pool.attach("v1.1")
    pool.reopen().detach(Key("v1.1"))
    assert _stack(path) == 0


def test_a_read_only_attachment_refuses_writes(pool: Pool) -> None:
    pool.create("v1.1")
    path = pool.attach("v1.1", read_only=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        (path / "file").write_bytes(b"")
    assert caught.value.errno == errno.EROFS


def test_a_tree_attached_read_only_can_be_attached_for_writing_afterwards(pool: Pool) -> None:
    pool.create("v1.1")
    pool.attach("v1.1", read_only=True)
    pool.driver.detach(Key("v1.1"))
    (pool.attach("v1.1") / "file").write_bytes(b"content")
    assert pool.names("v1.1") == {"file"}


@pytest.mark.parametrize("read_only", [False, True])
def test_attach_changes_an_attachment_that_is_wrongly_read_only_or_writable(pool: Pool, *, read_only: bool) -> None:
    pool.create("v1.1")
    pool.attach("v1.1", read_only=not read_only)
    path = pool.attach("v1.1", read_only=read_only)
    assert bool(os.statvfs(path).f_flag & os.ST_RDONLY) == read_only
    assert _stack(path) == 1


def test_attach_replaces_a_mount_of_another_tree(pool: Pool) -> None:
    pool.create("v1.1")
    pool.create("v2.1")
    pool.write("v1.1", "file", b"content")
    wrong = pool.attach("v2.1")
    (pool.mounts / "v1.1").mkdir(exist_ok=True)
    mount.bind(wrong, pool.mounts / "v1.1", read_only=False)
    assert set(os.listdir(pool.attach("v1.1"))) == {"file"}
    assert _stack(pool.mounts / "v1.1") == 1


def test_attach_replaces_a_foreign_file_system(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    (pool.mounts / "v1.1").mkdir(exist_ok=True)
    mount.mount("none", pool.mounts / "v1.1", fs_type="tmpfs", data="size=64k")
    assert set(os.listdir(pool.attach("v1.1"))) == {"file"}
    assert _stack(pool.mounts / "v1.1") == 1


def test_attach_takes_off_what_is_mounted_over_the_tree(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    path = pool.attach("v1.1")
    mount.mount("none", path, fs_type="tmpfs", data="size=64k")
    assert set(os.listdir(pool.attach("v1.1"))) == {"file"}
    assert _stack(path) == 1


def test_attach_serves_the_new_tree_when_its_key_was_removed_and_made_again(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "old", b"")
    pool.attach("v1.1")
    pool.driver.detach(Key("v1.1"))
    pool.driver.remove(Key("v1.1"))
    pool.create("v1.1")
    assert set(os.listdir(pool.attach("v1.1"))) == set()


def test_detach_unmounts_and_remove_leaves_no_mount_point(pool: Pool) -> None:
    pool.create("v1.1")
    pool.attach("v1.1")
    pool.driver.detach(Key("v1.1"))
    assert mount.at(pool.mounts / "v1.1") is None
    pool.driver.remove(Key("v1.1"))
    assert os.listdir(pool.mounts) == []


def test_detach_may_be_repeated(pool: Pool) -> None:
    pool.create("v1.1")
    pool.attach("v1.1")
    pool.driver.detach(Key("v1.1"))
    pool.driver.detach(Key("v1.1"))


def test_detach_of_an_absent_tree_is_no_error(pool: Pool) -> None:
    pool.driver.detach(Key("v9.9"))


def test_detach_refuses_while_a_file_is_open(pool: Pool) -> None:
    pool.create("v1.1")
    path = pool.attach("v1.1")
    with (path / "file").open("wb") as file:
        with pytest.raises(InUse, match=r"cannot detach tree v1\.1"):
            pool.driver.detach(Key("v1.1"))
        file.write(b"content")
    assert (path / "file").read_bytes() == b"content"


def test_detach_leaves_other_attachments(pool: Pool) -> None:
    pool.create("v1.1")
    pool.create("v1.10")
    pool.attach("v1.1")
    path = pool.attach("v1.10")
    pool.driver.detach(Key("v1.1"))
    assert _stack(path) == 1
