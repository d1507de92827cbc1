"""create, clone, remove, trees: independence, repeatability, errors before anything changes."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.contract.conftest import Pool
from voldriverd.driver import Key, TreeOptions
from voldriverd.errors import Exists, NotFound
from voldriverd.kernel import fs

pytestmark = pytest.mark.root


def test_a_new_pool_has_no_trees(pool: Pool) -> None:
    assert pool.driver.trees() == set()


def test_a_new_tree_is_listed_and_looks_empty(pool: Pool) -> None:
    pool.create("v1.1")
    assert pool.driver.trees() == {"v1.1"}
    assert pool.names("v1.1") == set()


def test_the_root_directory_is_roots_own_unless_options_say_otherwise(pool: Pool) -> None:
    pool.create("v1.1")
    status = pool.attach("v1.1").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o755)


def test_the_root_directory_has_the_uid_gid_and_mode_of_its_options(pool: Pool) -> None:
    pool.create("v1.1", TreeOptions(uid=1234, gid=56, mode=0o2771))
    status = pool.attach("v1.1").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 56, 0o2771)


def test_create_refuses_a_key_that_exists_and_leaves_its_content(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    with pytest.raises(Exists, match=r"cannot create tree v1\.1"):
        pool.create("v1.1")
    assert pool.read("v1.1", "file") == b"content"


def test_a_clone_has_the_content_of_its_source(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("v2.1"), read_only=False)
    assert pool.driver.trees() == {"v1.1", "v2.1"}
    assert pool.read("v2.1", "file") == b"content"


def test_a_clone_has_the_owner_and_mode_of_the_root_directory(pool: Pool) -> None:
    pool.create("v1.1", TreeOptions(uid=7, gid=8, mode=0o1750))
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    status = pool.attach("s1", read_only=True).stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o1750)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_clone_outlives_its_source(pool: Pool, *, read_only: bool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    pool.driver.remove(Key("v1.1"))
    assert pool.driver.trees() == {"s1"}
    assert pool.read("s1", "file") == b"content"


def test_writing_to_a_clone_leaves_its_source(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("v2.1"), read_only=False)
    pool.write("v2.1", "file", b"other")
    assert pool.read("v1.1", "file") == b"content"


def test_writing_to_the_source_leaves_its_clone(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.write("v1.1", "file", b"other")
    assert pool.read("s1", "file") == b"content"


def test_a_clone_of_a_read_only_clone_can_be_written(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.driver.clone(Key("s1"), Key("v1.2"), read_only=False)
    pool.write("v1.2", "more", b"new")
    assert pool.read("v1.2", "file") == b"content"
    assert pool.names("s1") == {"file"}


def test_a_read_only_clone_of_a_read_only_clone_has_its_content(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.driver.clone(Key("s1"), Key("s2"), read_only=True)
    pool.driver.remove(Key("s1"))
    assert pool.read("s2", "file") == b"content"


def test_a_read_only_clone_refuses_writes_however_it_is_attached(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    path = pool.attach("s1", read_only=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        (path / "more").write_bytes(b"")
    assert caught.value.errno == errno.EROFS


def test_clone_of_an_absent_tree_is_not_found(pool: Pool) -> None:
    with pytest.raises(NotFound, match=r"v9\.9"):
        pool.driver.clone(Key("v9.9"), Key("v2.1"), read_only=False)
    assert pool.driver.trees() == set()


def test_clone_refuses_a_key_that_exists_and_leaves_its_content(pool: Pool) -> None:
    pool.create("v1.1")
    pool.create("v2.1")
    pool.write("v2.1", "file", b"content")
    with pytest.raises(Exists, match=r"v2\.1"):
        pool.driver.clone(Key("v1.1"), Key("v2.1"), read_only=True)
    assert pool.read("v2.1", "file") == b"content"


def test_remove_leaves_other_trees(pool: Pool) -> None:
    pool.create("v1.1")
    pool.create("v1.10")
    pool.write("v1.10", "file", b"content")
    pool.driver.remove(Key("v1.1"))
    assert pool.driver.trees() == {"v1.10"}
    assert pool.read("v1.10", "file") == b"content"


def test_remove_may_be_repeated(pool: Pool) -> None:
    pool.create("v1.1")
    pool.driver.remove(Key("v1.1"))
    pool.driver.remove(Key("v1.1"))
    assert pool.driver.trees() == set()


def test_a_key_may_be_used_again_after_removal(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.remove(Key("v1.1"))
    pool.create("v1.1")
    assert pool.names("v1.1") == set()


def test_remove_destroys_a_read_only_clone(pool: Pool) -> None:
    pool.create("v1.1")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.driver.remove(Key("s1"))
    assert pool.driver.trees() == {"v1.1"}


@pytest.mark.parametrize("read_only", [False, True])
def test_whatever_a_containers_root_made_is_cloned_and_removed(pool: Pool, *, read_only: bool) -> None:
    pool.create("v1.1")
    made = _make_odd_things(pool.attach("v1.1"))
    pool.driver.detach(Key("v1.1"))
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    assert set(os.listdir(os.fsencode(pool.attach("s1", read_only=True)))) == made
    pool.driver.detach(Key("s1"))
    pool.driver.remove(Key("v1.1"))
    pool.driver.remove(Key("s1"))
    assert pool.driver.trees() == set()


def _make_odd_things(root: Path) -> set[bytes]:
    """Make what removals stumble over and return the names in the root directory."""
    deep = root / "deep"
    for _ in range(50):
        deep.mkdir()
        deep = deep / "d"
    (root / "new\nline").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"")
    (root / ("n" * 255)).write_bytes(b"")
    (root / "link").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "closed").mkdir(0)
    for name, flag in (("immutable", fs.FS_IMMUTABLE_FL), ("append", fs.FS_APPEND_FL)):
        (root / name).mkdir()
        (root / name / "file").write_bytes(b"x")
        _add_flag(root / name / "file", flag)
        _add_flag(root / name, flag)
    return set(os.listdir(os.fsencode(root)))


def _add_flag(path: Path, flag: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        fs.set_flags(fd, fs.get_flags(fd) | flag)
    finally:
        os.close(fd)


def test_a_new_instance_sees_the_same_trees(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    again = pool.reopen()
    assert again.trees() == {"v1.1", "s1"}
    assert (again.attach(Key("s1"), read_only=True) / "file").read_bytes() == b"content"


def test_a_new_instance_may_remove_what_another_made(pool: Pool) -> None:
    pool.create("v1.1")
    pool.reopen().remove(Key("v1.1"))
    assert pool.driver.trees() == set()


def test_open_may_be_repeated_and_keeps_everything(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    pool.driver.open()
    assert pool.read("v1.1", "file") == b"content"


def test_the_pools_root_stays_closed_to_others(pool: Pool) -> None:
    pool.create("v1.1")
    assert stat.S_IMODE(pool.root.stat().st_mode) == 0o700


def test_sync_may_be_called_at_any_time(pool: Pool) -> None:
    pool.driver.sync()
    pool.create("v1.1")
    pool.driver.sync()
    pool.driver.remove(Key("v1.1"))
    pool.driver.sync()
    assert pool.driver.trees() == set()
