"""users and remove: what other mounts and other mount namespaces hold."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.conftest import Pool
from voldriverd.driver import Key
from voldriverd.errors import InUse
from voldriverd.kernel import mount

pytestmark = pytest.mark.root


@contextmanager
def _holder(source: Path, place: Path) -> Iterator[int]:
    """Run a process that has `source` mounted at `place` in a mount namespace of its own; yields its pid."""
    place.mkdir(exist_ok=True)
    script = 'mount --bind "$0" "$1" && umount "$0" && exec cat'
    argv = ["unshare", "-m", "sh", "-c", script, str(source), str(place)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"  # cat answers, no longer the shell
        try:
            yield process.pid
        finally:
            process.stdin.close()


def test_a_tree_at_rest_has_no_users(pool: Pool) -> None:
    pool.create("v1.1")
    assert pool.driver.users(Key("v1.1")) == []


def test_an_absent_tree_has_no_users(pool: Pool) -> None:
    assert pool.driver.users(Key("v9.9")) == []


def test_our_own_attachment_is_no_user(pool: Pool) -> None:
    pool.create("v1.1")
    pool.attach("v1.1")
    assert pool.driver.users(Key("v1.1")) == []


def test_a_second_mount_in_our_namespace_is_a_user(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    (tmp_path / "second").mkdir()
    mount.bind(pool.attach("v1.1"), tmp_path / "second", read_only=True)
    assert [user.mount_point for user in pool.driver.users(Key("v1.1"))] == [str(tmp_path / "second")]


def test_a_mount_of_a_directory_inside_the_tree_is_a_user(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    (tmp_path / "second").mkdir()
    (pool.attach("v1.1") / "inside").mkdir()
    mount.bind(pool.mounts / "v1.1" / "inside", tmp_path / "second", read_only=False)
    assert [user.mount_point for user in pool.driver.users(Key("v1.1"))] == [str(tmp_path / "second")]


def test_a_mount_in_another_namespace_is_a_user_with_its_process(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    path = pool.attach("v1.1")
    with _holder(path, tmp_path / "other") as pid:
        (user,) = pool.driver.users(Key("v1.1"))
        assert (user.pid, user.process, user.mount_point) == (pid, "cat", str(tmp_path / "other"))


def test_other_trees_do_not_get_its_users(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    pool.create("v1.10")
    with _holder(pool.attach("v1.10"), tmp_path / "other"):
        assert pool.driver.users(Key("v1.1")) == []


def test_remove_of_an_attached_tree_is_refused(pool: Pool) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    path = pool.attach("v1.1")
    with pytest.raises(InUse, match=r"cannot remove tree v1\.1"):
        pool.driver.remove(Key("v1.1"))
    assert (path / "file").read_bytes() == b"content"


def test_remove_of_a_tree_mounted_elsewhere_is_refused_with_the_process_named(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    pool.write("v1.1", "file", b"content")
    path = pool.attach("v1.1")
    with _holder(path, tmp_path / "other") as pid:
        pool.driver.detach(Key("v1.1"))
        with pytest.raises(InUse, match=rf"v1\.1.*cat.*{pid}.*{tmp_path}/other"):
            pool.driver.remove(Key("v1.1"))
    assert pool.read("v1.1", "file") == b"content"


def test_remove_succeeds_when_the_user_has_gone(pool: Pool, tmp_path: Path) -> None:
    pool.create("v1.1")
    with _holder(pool.attach("v1.1"), tmp_path / "other"):
        pool.driver.detach(Key("v1.1"))
    pool.driver.remove(Key("v1.1"))
    assert pool.driver.trees() == set()
