"""drivers/archive: a tree in a tar archive and out of it, by ours and by GNU tar, and what an enemy may send."""

import errno
import io
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from drivers import archive
from tests.likeness import Facts, describe
from tests.scratch import Scratch
from tests.test_kernel_tree import add_flags, bound, few_descriptors, nest
from tests.test_kernel_tree_copy import _make_everything
from tests.watchers import Enough, Watcher
from voldriverd.driver import PART_MAX, Part, StreamFormat
from voldriverd.errors import Unusable
from voldriverd.kernel import attributes, fs, sparse, tar, tree, watch

pytestmark = pytest.mark.root

_FILE: Final = tar.Member(b"./file", tar.Kind.FILE, 0o644, 1, 2, 3)
_LINK: Final = replace(_FILE, path=b"./again", kind=tar.Kind.LINK, link=b"./file")
_END: Final = bytes(1_024)


@pytest.fixture(params=["btrfs", "ext4", "xfs"])
def place(request: pytest.FixtureRequest, session_scratch: Scratch) -> Iterator[Path]:
    """Return a directory on each kind of file system that holds the empty directories `tree` and `out`."""
    path = session_scratch.shared(f"tree-{request.param}", request.param) / "archives"
    for name in ("tree", "out"):
        (path / name).mkdir(parents=True)
    yield path
    tree.vanish(path)


only_ext4 = pytest.mark.parametrize("place", ["ext4"], indirect=True)


def written(root: Path) -> bytes:
    with archive.write(root) as parts:
        return b"".join(part.data or b"" for part in parts)


def in_parts(content: bytes, size: int = 100_000) -> Iterator[Part]:
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        yield Part(piece, len(piece))


def extracted(place: Path, content: bytes, size: int = 100_000) -> tuple[str, ...]:
    return archive.extract(in_parts(content, size), place / "out")


def member(found: tar.Member, content: bytes = b"") -> bytes:
    return tar.header(replace(found, size_bytes=len(content))) + content + bytes(tar.padding(len(content)))


def by_hand(place: Path, content: bytes) -> str:
    """Extract by GNU tar and return what it said."""
    options = ["-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp"]
    done = subprocess.run(["tar", *options, "-C", place / "out"], input=content, check=True, capture_output=True)
    return done.stderr.decode()


def likeness(root: Path, *leave_out: str) -> dict[bytes, Facts]:
    """Describe a tree without what no archive holds: atimes and sockets."""
    found = describe(root)
    for facts in found.values():
        facts["times"] = str(facts["times"]).split(",")[1]
        for name in leave_out:
            facts.pop(name, None)
    return {path: facts for path, facts in found.items() if not stat.S_ISSOCK(int(str(facts["mode"]), 8))}


def test_everything_comes_out_as_it_was(place: Path) -> None:
    _make_everything(place / "tree")
    assert extracted(place, written(place / "tree")) == ()
    assert likeness(place / "out") == likeness(place / "tree")


def test_gnu_tar_extracts_everything_but_inode_flags(place: Path) -> None:
    _make_everything(place / "tree")
    said = by_hand(place, written(place / "tree"))
    assert set(said.splitlines()) == {"tar: Ignoring unknown extended header keyword 'SCHILY.fflags'"}
    assert likeness(place / "out", "flags") == likeness(place / "tree", "flags")


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4_096, PART_MAX])
@only_ext4
def test_parts_may_end_anywhere(place: Path, size: int) -> None:
    _make_everything(place / "tree")
    os.truncate(place / "tree" / "large", 100_000)
    assert extracted(place, written(place / "tree"), size) == ()
    assert likeness(place / "out") == likeness(place / "tree")


def test_a_copy_gives_the_same_bytes(place: Path) -> None:
    _make_everything(place / "tree")
    first = written(place / "tree")
    assert written(place / "tree") == first
    extracted(place, first)
    assert written(place / "out") == first


def test_the_order_in_which_files_were_made_does_not_matter(place: Path) -> None:
    names = [f"{number}" for number in range(10)]  # few: large directories of ext4 have an order of their own
    for name in names:
        (place / "tree" / name).mkdir()
        (place / "tree" / name / "file").touch()
        (place / "tree" / f"file{name}").touch()
    for name in reversed(names):
        (place / "out" / f"file{name}").touch()
        (place / "out" / name).mkdir()
        (place / "out" / name / "file").touch()
    assert _names(written(place / "tree")) == _names(written(place / "out"))


def _names(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:", errors="surrogateescape") as file:
        return file.getnames()


def test_the_order_in_which_attributes_were_set_does_not_matter(place: Path) -> None:
    names = [f"user.{name}" for name in "bdac"]
    for name, order in (("tree", names), ("out", list(reversed(names)))):
        (place / name / "file").touch()
        for attribute in order:
            os.setxattr(place / name / "file", attribute, b"value")
        os.utime(place / name / "file", (5, 5))
        os.utime(place / name, (5, 5))
    assert written(place / "tree") == written(place / "out")


@only_ext4
def test_odd_names_of_attributes_come_out_as_they_were(place: Path) -> None:
    for number, name in enumerate(("user.a=b", "user.100%", "user.%3D", "user.%25=%")):
        os.setxattr(place / "tree", name, bytes([number]))
    content = written(place / "tree")
    extracted(place, content)
    assert likeness(place / "out") == likeness(place / "tree")
    by_hand(place, content)
    assert likeness(place / "out") == likeness(place / "tree")


def test_a_header_that_says_it_is_too_long_is_malformed() -> None:
    headers = tar.Headers()
    block = tar.header(replace(_FILE, kind=ord("x"), size_bytes=tar.HEADERS_MAX + 1, mtime_ns=0))
    with pytest.raises(tar.Malformed, match="too long"):
        headers.take(block)
    assert headers.wanted == tar.BLOCK_BYTES


@only_ext4
def test_an_access_changes_no_byte(place: Path) -> None:
    (place / "tree" / "file").write_bytes(b"content")
    first = written(place / "tree")
    os.utime(place / "tree" / "file", ns=(0, (place / "tree" / "file").stat().st_mtime_ns))
    assert written(place / "tree") == first


@only_ext4
def test_parts_are_of_bounded_size(place: Path) -> None:
    (place / "tree" / "large").write_bytes(os.urandom(9 << 20))
    for number in range(500):
        (place / "tree" / str(number)).write_bytes(bytes(1_000))
    with archive.write(place / "tree") as parts:
        found = list(parts)
    assert all(part.data is not None and part.length == len(part.data) and part.offset is None for part in found)
    assert max(part.length for part in found) <= PART_MAX
    assert min(part.length for part in found[:-1]) >= 1 << 20


@pytest.mark.parametrize("place", ["xfs"], indirect=True)
def test_headers_longer_than_a_part_are_cut(place: Path) -> None:
    for number in range(70):
        os.setxattr(place / "tree", f"user.{number}", os.urandom(65_000))
    with archive.write(place / "tree") as parts:
        lengths = [part.length for part in parts]
    assert lengths[0] == PART_MAX
    assert extracted(place, written(place / "tree")) == ()
    assert likeness(place / "out") == likeness(place / "tree")


@pytest.mark.parametrize("place", ["xfs"], indirect=True)
def test_more_attributes_than_an_archive_can_have_are_an_error_that_names_the_file(place: Path) -> None:
    (place / "tree" / "inner").mkdir()
    for number in range(260):
        os.setxattr(place / "tree" / "inner", f"user.{number}", bytes(65_536))
    with pytest.raises(OSError, match="inner") as caught:
        written(place / "tree")
    assert caught.value.errno == errno.E2BIG


def test_holes_stay_holes(place: Path) -> None:
    sizes = {"all hole": [], "first": [0], "last": [15], "both": [0, 7], "many": [2, 4, 6, 8]}
    for name, mebibytes in sizes.items():
        with (place / "tree" / name).open("wb") as file:
            file.truncate((16 << 20) + 5)
            for number in mebibytes:
                file.seek(number << 20)
                file.write(os.urandom(1 << 20))
    content = written(place / "tree")
    assert len(content) < 12 << 20
    assert extracted(place, content) == ()
    assert likeness(place / "out") == likeness(place / "tree")


@only_ext4
def test_of_very_many_holes_the_last_ones_are_written_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SEGMENTS_MAX", 3)
    with (place / "tree" / "file").open("wb") as file:
        for number in range(6):
            file.seek(number * 100_000)
            file.write(b"content")
    assert extracted(place, written(place / "tree")) == ()
    assert (place / "out" / "file").read_bytes() == (place / "tree" / "file").read_bytes()


@only_ext4
def test_a_socket_is_left_out_and_told(place: Path) -> None:
    os.mknod(place / "tree" / "socket", stat.S_IFSOCK | 0o600)
    (place / "tree" / "inner").mkdir()
    (place / "tree" / "inner" / "file").touch()
    with archive.stream(place / "tree") as stream:
        assert stream.notes == ("tar cannot hold sockets: socket",)
        assert extracted(place, b"".join(part.data or b"" for part in stream.parts)) == ()
    os.mknod(place / "tree" / "inner" / "socket", stat.S_IFSOCK | 0o600)
    with archive.stream(place / "tree", notes=("first",)) as stream:
        assert stream.notes == ("first", "tar cannot hold sockets: socket and 1 more")
    assert sorted(os.listdir(place / "out")) == ["inner"]


@only_ext4
def test_a_stream_says_what_it_is_and_how_long(place: Path) -> None:
    nest(place / "tree", 20)
    for number in range(100):
        (place / "tree" / "d" / str(number)).write_bytes(os.urandom(50_000))
    with (place / "tree" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    with archive.stream(place / "tree") as stream:
        assert (stream.format, stream.version, stream.is_incremental) == (StreamFormat.TAR, 1, False)
        assert stream.image_bytes is None
        length = sum(part.length for part in stream.parts)
        assert stream.expected_bytes is not None
        assert 0.9 < stream.expected_bytes / length < 1.1


@only_ext4
def test_the_look_before_the_first_part_ends_with_the_next_file(place: Path) -> None:
    for number in range(10):
        (place / str(number)).write_bytes(b"x" * 5_000)
    watcher = Watcher("looks how much there is", ends_after=20_000)
    with pytest.raises(Enough), watch.watched(watcher), archive.stream(place):
        pass
    assert 20_000 <= watcher.told_bytes["looks how much there is"] < 40_000


@only_ext4
def test_files_that_make_no_part_yet_are_told_and_may_be_the_end(place: Path) -> None:
    for number in range(10):
        (place / str(number)).touch()
    taken = []
    with pytest.raises(Enough), archive.write(place) as parts, watch.watched(Watcher(ends_after=0)):
        taken += list(parts)
    assert taken == []
    watcher = Watcher()
    with archive.write(place) as parts, watch.watched(watcher):
        assert len(list(parts)) == 1
    assert watcher.heard >= 10 + 2 * 10  # of each name, of each header and of what stands behind that


@pytest.mark.parametrize("taken", [0, 1, 3])
@only_ext4
def test_nothing_stays_open_when_the_reader_stops_early(place: Path, taken: int) -> None:
    nest(place / "tree", 30)
    (place / "tree" / "d" / "file").write_bytes(bytes(9 << 20))
    for number in range(50):
        (place / "tree" / "d" / f"next {number}").touch()
    before = os.listdir("/proc/self/fd")
    with archive.write(place / "tree") as parts:
        for _ in range(taken):
            next(parts)
    assert os.listdir("/proc/self/fd") == before


@only_ext4
def test_any_number_of_files_in_a_directory_needs_few_descriptors(place: Path) -> None:
    for number in range(200):
        (place / "tree" / f"{number}").write_bytes(b"x")
        os.mkfifo(place / "tree" / f"fifo {number}")
    with few_descriptors(40):
        assert len(_names(written(place / "tree"))) == 401


@only_ext4
def test_a_file_that_shrinks_while_it_is_read_is_an_error_that_names_it(place: Path) -> None:
    (place / "tree" / "file").write_bytes(os.urandom(4 << 20))
    with archive.write(place / "tree") as parts:
        next(parts)
        os.truncate(place / "tree" / "file", 1 << 20)
        with pytest.raises(OSError, match=r"shrank.*file") as caught:
            list(parts)
    assert caught.value.errno == errno.ESTALE


@only_ext4
def test_a_mount_inside_is_refused_by_its_path(place: Path) -> None:
    (place / "tree" / "a" / "b").mkdir(parents=True)
    with (
        bound(place / "out", place / "tree" / "a" / "b"),
        pytest.raises(OSError, match=r"mounted.*a/b") as caught,
    ):
        written(place / "tree")
    assert caught.value.errno == errno.EBUSY


@only_ext4
def test_no_depth_is_too_deep(place: Path) -> None:
    nest(place / "tree", 5_000)
    with few_descriptors(tree._FDS_KEPT + 10):
        _write_at_the_bottom(place / "tree")
        content = written(place / "tree")
        assert extracted(place, content) == ()
    assert written(place / "out") == content


def _write_at_the_bottom(root: Path) -> None:
    with tree.Cursor(root) as cursor:
        while "d" in os.listdir(cursor.fd):
            cursor.down("d")
        fd = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=cursor.fd)
        os.write(fd, b"content")
        fs.set_flags(fd, fs.FS_IMMUTABLE_FL)
        os.close(fd)
        os.mkfifo("fifo", dir_fd=cursor.fd)
        os.link("fifo", "other", src_dir_fd=cursor.fd, dst_dir_fd=cursor.fd)
        os.utime(cursor.fd, ns=(0, 5))


@only_ext4
def test_an_immutable_file_gets_all_its_names_first(place: Path) -> None:
    (place / "tree" / "a").write_bytes(b"content")
    for name in ("b", "inner"):
        (place / "tree" / name).mkdir()
        os.link(place / "tree" / "a", place / "tree" / name / "again")
    add_flags(place / "tree" / "a", fs.FS_IMMUTABLE_FL | attributes.FS_NODUMP_FL)
    add_flags(place / "tree" / "b", fs.FS_APPEND_FL | fs.FS_IMMUTABLE_FL)
    assert extracted(place, written(place / "tree")) == ()
    assert likeness(place / "out") == likeness(place / "tree")


@only_ext4
def test_a_file_is_remembered_only_while_names_of_it_may_come(place: Path) -> None:
    for number in range(10):
        (place / "tree" / f"a{number}").touch()
        os.link(place / "tree" / f"a{number}", place / "tree" / f"b{number}")
    with tree.Cursor(place / "tree") as cursor:
        writer = archive._Writer(cursor)
        assert len(_names(b"".join(writer.members()))) == 21
    assert writer._links == {}


@only_ext4
def test_names_outside_of_the_tree_do_not_count(place: Path) -> None:
    (place / "tree" / "file").write_bytes(b"content")
    os.link(place / "tree" / "file", place / "outside")
    assert extracted(place, written(place / "tree")) == ()
    assert (place / "out" / "file").stat().st_nlink == 1


@only_ext4
def test_nothing_is_inherited_from_where_it_is_extracted(place: Path) -> None:
    (place / "tree" / "inner").mkdir()
    (place / "tree" / "inner" / "file").write_bytes(b"content")
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", place / "out"], check=True)
    assert extracted(place, written(place / "tree")) == ()
    assert likeness(place / "out") == likeness(place / "tree")


# What a file system cannot hold


@only_ext4
def test_what_is_said_of_names_that_are_no_utf8_can_be_written_down_anywhere(place: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with tree.Cursor(place / "tree") as cursor:
        os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=cursor.fd)
        said = cursor.error(OSError(errno.EIO, "broken"), name).filename
    with archive.stream(place / "tree") as stream:
        (note,) = stream.notes
    latin = member(replace(_FILE, path=b"./caf\xe9", xattrs=((b"nowhere.x", b"1"),)), b"")
    (kept_not,) = extracted(place, latin + _END)
    with pytest.raises(Unusable) as caught:
        extracted(place, latin + _END)
    for text in (said, note, kept_not, str(caught.value)):
        assert r"caf\udce9" in text
        assert text.encode()


@only_ext4
def test_an_attribute_that_has_no_room_is_noted_and_the_rest_kept(place: Path) -> None:
    large = replace(_FILE, xattrs=((b"user.large", bytes(60_000)), (b"user.small", b"value")))
    others = [member(replace(large, path=b"./file%d" % number), b"content") for number in range(3)]
    assert extracted(place, b"".join(others) + _END) == (
        "file0 and 2 more: 'user.large' cannot be kept here (No space left on device)",
    )
    assert os.getxattr(place / "out" / "file1", "user.small") == b"value"
    assert (place / "out" / "file2").read_bytes() == b"content"


@only_ext4
@pytest.mark.parametrize("name", ["odd.namespace", "user." + "n" * 300, "system.posix_acl_access"])
def test_an_attribute_that_nobody_can_set_is_noted(place: Path, name: str) -> None:
    content = member(replace(_FILE, xattrs=((name.encode(), b"nonsense"),))) + _END
    (note,) = extracted(place, content)
    assert note.startswith(f"file: '{name}' cannot be kept here (")


@only_ext4
def test_a_full_disk_is_no_reason_to_leave_an_attribute_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.inodes._ROOM_BYTES", 1 << 60)
    content = member(replace(_FILE, xattrs=((b"user.large", bytes(60_000)),))) + _END
    with pytest.raises(OSError, match="file") as caught:
        extracted(place, content)
    assert caught.value.errno == errno.ENOSPC


@only_ext4
def test_a_failing_disk_is_told_with_the_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    for module, name in ((os, "setxattr"), (attributes, "add_flags"), (os, "pwrite"), (os, "utime")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match=r"broken.*file") as caught:
                extracted(place, member(replace(_FILE, xattrs=((b"user.a", b""),)), b"content") + _END)
        assert caught.value.errno == errno.EIO
        (place / "out" / "file").unlink()


@only_ext4
def test_a_flag_that_there_is_not_is_noted(place: Path) -> None:
    content = member(replace(_FILE, flags=fs.FS_NOCOW_FL)) + _END
    (note,) = extracted(place, content)
    assert note.startswith("file: its inode flags (lsattr) cannot be kept here (")


@only_ext4
def test_a_time_that_there_is_not_is_noted(place: Path) -> None:
    content = (
        member(replace(_FILE, mtime_ns=-(2**33) * 10**9)) + member(replace(_FILE, path=b"./other", mtime_ns=-5)) + _END
    )
    assert extracted(place, content) == ("file: its time cannot be kept here",)
    assert (place / "out" / "other").stat().st_mtime_ns == -5


@only_ext4
def test_more_names_than_a_file_may_have_become_copies(place: Path) -> None:
    content = os.urandom(1_000)
    links = (tar.header(replace(_LINK, path=b"./%d" % number)) for number in range(2, 65_003))
    file = member(replace(_FILE, mode=0o4751, xattrs=((b"user.name", b"value"),)), content)
    (note,) = extracted(place, file + b"".join(links) + _END, PART_MAX)
    assert note == "65001 and 1 more: a copy, for its file has as many names as this file system allows"
    assert (place / "out" / "65000").stat().st_nlink == 65_000
    copy = place / "out" / "65002"
    assert copy.read_bytes() == content
    assert (copy.stat().st_nlink, copy.stat().st_mtime_ns, copy.stat().st_mode & 0o7777) == (1, 3, 0o4751)
    assert os.getxattr(copy, "user.name") == b"value"


# What is no archive of ours, or not all of it


@only_ext4
@pytest.mark.parametrize("cut", [0, 1, 511, 512, 1_535, 1_536, 2_000, 100_000, 1_024, -1, -512, -513, -1_024])
def test_an_archive_that_ends_too_early_is_unusable(place: Path, cut: int) -> None:
    (place / "tree" / "file").write_bytes(os.urandom(200_000))
    content = written(place / "tree")
    with pytest.raises(Unusable, match="cannot extract"):
        extracted(place, content[:cut])


@only_ext4
@pytest.mark.parametrize("at", [100, 512, 1_000, 1_536, 2_000, 12_000])
@pytest.mark.parametrize("kind", [OSError, EOFError, FileExistsError, FileNotFoundError, KeyboardInterrupt])
def test_what_the_parts_raise_passes_as_it_is(place: Path, kind: type[BaseException], at: int) -> None:
    (place / "tree" / "file").write_bytes(os.urandom(10_000))
    content = written(place / "tree")
    err = kind("theirs")

    def parts() -> Iterator[Part]:
        yield from in_parts(content[:at])
        raise err

    with pytest.raises(kind) as caught:
        archive.extract(parts(), place / "out")
    assert caught.value is err


@only_ext4
def test_random_bytes_are_unusable(place: Path) -> None:
    for seed in range(50):
        with pytest.raises(Unusable, match="cannot extract"):
            extracted(place, random.Random(seed).randbytes(5_000))


@only_ext4
def test_a_changed_header_is_unusable_or_harmless(place: Path) -> None:
    (place / "tree" / "file").write_bytes(b"content")
    os.setxattr(place / "tree" / "file", "user.name", b"value")
    content = bytearray(written(place / "tree"))
    for position in range(0, len(content) - 1_024, 7):
        spoilt = content[:]
        spoilt[position] ^= 0x11
        with suppress(Unusable, OSError):
            extracted(place, bytes(spoilt))
        assert set(os.listdir(place)) == {"tree", "out"}
        tree.vanish(place / "out")
        (place / "out").mkdir()


@only_ext4
@pytest.mark.parametrize("kind", ["V", "7", "D", "M", "S", "A"])
def test_a_kind_that_no_archive_of_ours_has_is_unusable(place: Path, kind: str) -> None:
    with pytest.raises(Unusable, match=r"cannot extract file"):
        extracted(place, member(replace(_FILE, kind=ord(kind))) + _END)


@only_ext4
def test_a_name_that_comes_twice_is_unusable(place: Path) -> None:
    with pytest.raises(Unusable, match=r"cannot extract file"):
        extracted(place, member(_FILE) + member(_FILE) + _END)


@only_ext4
@pytest.mark.parametrize("name", ["../evil", "inner/../../evil", "/evil", "./..", "inner/..", "a\0b", "/", "inner//"])
@pytest.mark.parametrize("kind", tar.Kind)
def test_a_path_that_leads_out_is_unusable_or_stays_inside(place: Path, name: str, kind: tar.Kind) -> None:
    evil = replace(_FILE, path=name.encode(), kind=kind, link=b"file", mode=0o755)
    extended = tar._extended([(b"path", name.encode())])  # in the header itself no zero byte can stand
    with suppress(Unusable):
        extracted(place, member(_FILE) + extended + member(evil) + _END)
    _expect_unharmed(place)


def _expect_unharmed(place: Path) -> None:
    """Nothing is anywhere but below `out`."""
    assert set(os.listdir(place)) == {"tree", "out"}
    assert os.listdir(place / "tree") == []
    assert not Path("/evil").exists()


@only_ext4
@pytest.mark.parametrize("link", ["../tree", "/", ".", "..", "inner"])
@pytest.mark.parametrize("kind", tar.Kind)
def test_nothing_goes_through_a_symlink(place: Path, link: str, kind: tar.Kind) -> None:
    symlink = replace(_FILE, path=b"./link", kind=tar.Kind.SYMLINK, link=link.encode())
    inner = replace(_FILE, path=b"./inner/", kind=tar.Kind.DIRECTORY)
    evil = replace(_FILE, path=b"./link/evil", kind=kind, link=b"./file")
    with pytest.raises(Unusable, match="cannot extract into link: it is no directory"):
        extracted(place, member(_FILE) + member(inner) + member(symlink) + member(evil) + _END)
    _expect_unharmed(place)
    assert os.listdir(place / "out" / "inner") == []


@only_ext4
def test_a_directory_does_not_replace_a_symlink(place: Path) -> None:
    symlink = replace(_FILE, path=b"./link", kind=tar.Kind.SYMLINK, link=b"../tree")
    with pytest.raises(Unusable, match="cannot extract into link: it is no directory"):
        extracted(place, member(symlink) + member(replace(_FILE, path=b"./link/", kind=tar.Kind.DIRECTORY)) + _END)
    assert (place / "tree").stat().st_mtime_ns != 3


@only_ext4
@pytest.mark.parametrize("link", ["../outside", "/etc/passwd", "", "..", ".", "link/outside", "inner/../../outside"])
def test_a_link_leads_to_what_is_inside_or_is_unusable(place: Path, link: str) -> None:
    (place / "tree" / "outside").write_bytes(b"secret")
    symlink = replace(_FILE, path=b"./link", kind=tar.Kind.SYMLINK, link=b"../tree")
    evil = replace(_LINK, path=b"./evil", link=link.encode())
    with pytest.raises(Unusable, match="cannot"):
        extracted(place, member(symlink) + member(evil) + _END)
    assert os.listdir(place / "out") == ["link"]


@only_ext4
def test_a_link_to_a_symlink_is_a_second_name_of_that(place: Path) -> None:
    symlink = replace(_FILE, path=b"./link", kind=tar.Kind.SYMLINK, link=b"/etc/passwd")
    extracted(place, member(symlink) + member(replace(_LINK, link=b"./link", path=b"./again")) + _END)
    assert os.readlink(place / "out" / "again") == "/etc/passwd"
    assert (place / "out" / "again").lstat().st_nlink == 2


@only_ext4
def test_a_link_to_what_never_came_is_unusable(place: Path) -> None:
    with pytest.raises(Unusable, match="cannot extract again: it links to what is not there"):
        extracted(place, member(_LINK) + _END)


@only_ext4
def test_directories_may_be_entered_again_and_keep_their_times(place: Path) -> None:
    inner = replace(_FILE, path=b"./inner/", kind=tar.Kind.DIRECTORY, mode=0o750)
    other = replace(inner, path=b"./other/")
    late = replace(_FILE, path=b"./inner/late")
    assert extracted(place, member(inner) + member(other) + member(late) + _END) == ()
    assert (place / "out" / "inner" / "late").exists()
    assert (place / "out" / "inner").stat().st_mtime_ns == 3
    assert (place / "out" / "inner").stat().st_mode & 0o7777 == 0o750


@only_ext4
def test_a_directory_that_was_not_told_of_is_made(place: Path) -> None:
    assert extracted(place, member(replace(_FILE, path=b"a/b/c")) + _END) == ()
    assert (place / "out" / "a" / "b" / "c").exists()


@only_ext4
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"x\n",
        b"2\n0\n5\n",
        b"1\n-1\n5\n",
        b"2\n4\n4\n0\n4\n",
        b"1\n0\n99\n",
        b"999999999\n",
        b"1\n90\n7\n",
        b"1\n0\n8\n",
        b"1\n0\n6\n",
    ],
)
def test_a_spoilt_map_of_a_sparse_file_loses_its_content_and_no_more(place: Path, text: bytes) -> None:
    sparse = replace(_FILE, sparse_bytes=10, path=b"./sparse")
    content = text + bytes(tar.padding(len(text)) or 512)
    (note,) = extracted(place, member(sparse, content + b"content") + member(_FILE, b"content") + _END)
    assert note.startswith("sparse: its content is lost")
    assert (place / "out" / "sparse").read_bytes() == bytes(10)
    assert (place / "out" / "file").read_bytes() == b"content"


# Zeros in the place of what was lost


def _three_files(place: Path) -> bytes:
    for name in ("a", "b", "c"):
        (place / "tree" / name).write_bytes(name.encode() * 10_000)
        os.setxattr(place / "tree" / name, "user.name", name.encode())
    return written(place / "tree")


@only_ext4
def test_zeros_where_a_member_should_be_are_told_and_the_others_come_out(place: Path) -> None:
    content = _three_files(place)
    start = content.index(b"b" * 10_000) - 1_536
    end = content.index(b"c" * 10_000) - 1_536
    notes = extracted(place, content[:start] + bytes(end - start) + content[end:])
    assert notes == (f"{end - start} bytes of the archive are lost, with whatever files began there",)
    assert sorted(os.listdir(place / "out")) == ["a", "c"]
    assert (place / "out" / "c").read_bytes() == b"c" * 10_000


@only_ext4
@pytest.mark.parametrize("had", [1, 400, 511, 512, 513, 600, 1_023, 1_024, 1_025])
def test_headers_that_turn_to_zeros_are_told_and_the_others_come_out(place: Path, had: int) -> None:
    content = _three_files(place)
    start = content.index(b"b" * 10_000) - 1_536 + had
    end = content.index(b"c" * 10_000) - 1_536
    (note,) = extracted(place, content[:start] + bytes(end - start) + content[end:])
    assert "bytes of the archive are lost" in note
    assert {"a", "c"} <= set(os.listdir(place / "out"))
    assert (place / "out" / "c").read_bytes() == b"c" * 10_000


@only_ext4
def test_a_lost_end_is_told(place: Path) -> None:
    content = _three_files(place)
    start = content.index(b"c" * 10_000) - 1_536
    (note,) = extracted(place, content[:start] + bytes(len(content) - start))
    assert "bytes of the archive are lost" in note
    assert sorted(os.listdir(place / "out")) == ["a", "b"]


@only_ext4
def test_a_link_to_what_was_lost_is_told(place: Path) -> None:
    content = member(replace(_FILE, path=b"./a")) + bytes(30_000 - 30_000 % 512)
    (link, lost) = extracted(place, content + member(_LINK) + _END)
    assert link == "again: it is lost with the first name of its file"
    assert "bytes of the archive are lost" in lost
