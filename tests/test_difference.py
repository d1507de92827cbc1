"""engine/difference: what differs between two trees, by walking both."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scratch import Scratch
from tests.test_kernel_tree import bound, few_descriptors, nest
from voldriverd.driver import Change, ChangeKind
from voldriverd.engine.difference import compare
from voldriverd.kernel import copying, run, tree

pytestmark = pytest.mark.root


@pytest.fixture
def place(session_scratch: Scratch) -> Iterator[Path]:
    """Return a directory with `old`, which holds one of everything, and its copy `new`."""
    path = session_scratch.shared("difference", "ext4") / "place"
    old = path / "old"
    (old / "directory" / "inner").mkdir(parents=True)
    (old / "directory" / "inner" / "file").write_bytes(b"content")
    (old / "file").write_bytes(b"content")
    (old / "link").symlink_to("file")
    os.mkfifo(old / "fifo")
    os.mknod(old / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(old / "socket", stat.S_IFSOCK | 0o600)
    copying.copy_tree(old, path / "new", live=False)
    yield path
    tree.vanish(path)


def changes(place: Path) -> list[tuple[str, str]]:
    return [(change.path, change.kind.value) for change in compare(place / "old", place / "new")]


def test_a_tree_and_its_copy_do_not_differ(place: Path) -> None:
    assert changes(place) == []


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def _replace_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def _replace_device(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("file", lambda path: path.write_bytes(b"other content")),
        ("file", lambda path: path.write_bytes(b"CONTENT")),
        ("file", _touch),
        ("file", lambda path: path.chmod(0o600)),
        ("file", lambda path: os.chown(path, 5, 0)),
        ("file", lambda path: os.chown(path, 0, 5)),
        ("file", lambda path: os.setxattr(path, "user.name", b"value")),
        ("file", lambda path: run.run(["setfacl", "-m", "u:5:r", str(path)])),
        ("directory", lambda path: path.chmod(0o700)),
        ("directory", lambda path: os.setxattr(path, "trusted.name", b"value")),
        ("directory/inner/file", lambda path: path.chmod(0o600)),
        ("link", _replace_link),
        ("link", lambda path: os.chown(path, 5, 5, follow_symlinks=False)),
        ("link", lambda path: os.setxattr(path, "trusted.name", b"value", follow_symlinks=False)),
        ("device", _replace_device),
        ("fifo", lambda path: path.chmod(0o666)),
        ("socket", lambda path: path.chmod(0o666)),
        (".", lambda path: path.chmod(0o700)),
    ],
)
def test_a_change_of_anything_that_is_compared_is_seen(
    place: Path, name: str, change: Callable[[Path], object]
) -> None:
    change(place / "new" / name)
    assert changes(place) == [(name, "changed")]


def test_a_change_of_an_xattrs_value_is_seen(place: Path) -> None:
    for name in ("old", "new"):
        os.setxattr(place / name / "file", "user.name", name.encode())
    assert changes(place) == [("file", "changed")]


def test_content_is_not_read_if_size_and_mtime_are_the_same(place: Path) -> None:
    status = (place / "old" / "file").stat()
    (place / "new" / "file").write_bytes(b"CONTENT")
    os.utime(place / "new" / "file", ns=(0, status.st_mtime_ns))
    assert changes(place) == []


def test_a_size_that_differs_is_seen_whatever_the_mtime(place: Path) -> None:
    status = (place / "old" / "file").stat()
    (place / "new" / "file").write_bytes(b"longer content")
    os.utime(place / "new" / "file", ns=(0, status.st_mtime_ns))
    assert changes(place) == [("file", "changed")]


def test_times_of_anything_but_files_do_not_count(place: Path) -> None:
    for name in ("directory", "link", "fifo", "device", "."):
        os.utime(place / "new" / name, ns=(1, 1), follow_symlinks=False)
    assert changes(place) == []


def test_what_is_added_or_removed_is_named_with_all_below_it(place: Path) -> None:
    (place / "new" / "added" / "inner").mkdir(parents=True)
    (place / "new" / "added" / "inner" / "file").write_bytes(b"")
    tree.vanish(place / "new" / "directory")
    assert changes(place) == [
        ("added", "added"),
        ("added/inner", "added"),
        ("added/inner/file", "added"),
        ("directory", "removed"),
        ("directory/inner", "removed"),
        ("directory/inner/file", "removed"),
    ]


def test_a_directory_that_became_a_symlink_is_not_followed(place: Path) -> None:
    tree.vanish(place / "new" / "directory")
    (place / "new" / "directory").symlink_to("../old/directory")
    assert changes(place) == [
        ("directory", "changed"),
        ("directory/inner", "removed"),
        ("directory/inner/file", "removed"),
    ]


def test_a_file_that_became_a_directory_is_changed_and_its_content_added(place: Path) -> None:
    (place / "new" / "file").unlink()
    (place / "new" / "file").mkdir()
    (place / "new" / "file" / "inner").write_bytes(b"")
    assert changes(place) == [("file", "changed"), ("file/inner", "added")]


def test_they_come_in_the_order_of_whole_paths(place: Path) -> None:
    for name in ("a/b", "a.txt", "a0", "a!/x", "!", "ä", os.fsdecode(b"\xff\n"), "\U0001f4a9", "\ue000"):
        path = place / "new" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (place / "new").chmod(0o700)
    found = list(compare(place / "old", place / "new"))
    assert found == sorted(found)
    assert [change.path for change in found if change.path.isascii()] == [
        "!",
        ".",
        "a",
        "a!",
        "a!/x",
        "a.txt",
        "a/b",
        "a0",
    ]


def test_a_mount_inside_is_refused_by_its_path(place: Path) -> None:
    with (
        bound(place / "old" / "directory", place / "new" / "directory" / "inner"),
        pytest.raises(OSError, match=r"mounted.*directory/inner") as caught,
    ):
        changes(place)
    assert caught.value.errno == errno.EBUSY


def test_a_mount_on_a_file_is_refused_by_its_path(place: Path) -> None:
    with (
        bound(place / "old" / "file", place / "new" / "directory" / "inner" / "file"),
        pytest.raises(OSError, match=r"directory/inner/file"),
    ):
        changes(place)


def test_what_goes_while_it_is_looked_at_is_removed(place: Path) -> None:
    found = compare(place / "old", place / "new")
    (place / "new" / ".first").write_bytes(b"")
    assert next(found) == Change(".first", ChangeKind.ADDED)
    (place / "new" / "file").unlink()
    tree.vanish(place / "new" / "directory")
    assert [change.path for change in found] == ["directory", "directory/inner", "directory/inner/file", "file"]


def test_no_descriptor_stays_open_when_nobody_asks_further(place: Path) -> None:
    (place / "new" / "added").write_bytes(b"")
    before = os.listdir("/proc/self/fd")
    found = compare(place / "old", place / "new")
    next(found)
    assert isinstance(found, Iterator)
    found.close()  # type: ignore[attr-defined]  # it is a generator
    assert os.listdir("/proc/self/fd") == before


def test_deep_trees_are_walked_as_far_as_paths_reach(place: Path) -> None:
    nest(place / "old", 3_000)
    nest(place / "new", 3_000)
    (place / "new" / "d" / "d" / "file").write_bytes(b"")
    with few_descriptors(2 * tree._FDS_KEPT + 8):
        assert changes(place) == [("d/d/file", "added")]


def test_a_deep_directory_is_listed_as_far_as_paths_reach(place: Path) -> None:
    nest(place / "new", 3_000)
    with few_descriptors(2 * tree._FDS_KEPT + 8):
        found = changes(place)
    assert len(found) == 2_049
    assert len(found[-1][0]) == 4_097


_NAMES = st.sampled_from(["a", "a!", "a.txt", "a0", "b", "ö", "\udcff"])
_LEAVES = st.sampled_from([b"", b"x", b"yy"]) | st.sampled_from(["link", "other"])
_TREES = st.recursive(
    st.dictionaries(_NAMES, _LEAVES, max_size=4), lambda inner: st.dictionaries(_NAMES, _LEAVES | inner, max_size=4)
)


@given(old=_TREES, new=_TREES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_two_trees_differ_as_their_descriptions_do(place: Path, old: object, new: object) -> None:
    described = []
    for name, content in (("old", old), ("new", new)):
        tree.vanish(place / name)
        described.append(_make(place / name, content))
    before, after = described
    expected = [
        Change(path, _kind(path in before, path in after))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    assert list(compare(place / "old", place / "new")) == expected


def _kind(is_in_old: object, is_in_new: object) -> ChangeKind:
    if not is_in_old:
        return ChangeKind.ADDED
    return ChangeKind.CHANGED if is_in_new else ChangeKind.REMOVED


def _make(root: Path, content: object) -> dict[str, object]:
    """Make a tree with one mtime for all files, and return what each path is."""
    found: dict[str, object] = {}
    if isinstance(content, bytes):
        root.write_bytes(content)
        os.utime(root, (0, 0))
    elif isinstance(content, str):
        root.symlink_to(content)
    elif isinstance(content, dict):
        root.mkdir()
        for name, inner in content.items():
            found[name] = "directory" if isinstance(inner, dict) else inner
            found |= {f"{name}/{path}": what for path, what in _make(root / name, inner).items()}
    return found
