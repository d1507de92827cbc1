"""engine/extract: one path of a tree as a tar stream, as GNU tar and Python's tarfile read it."""

import errno
import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.likeness import Facts, describe
from tests.scratch import Scratch
from tests.test_kernel_tree import bound, few_descriptors, nest
from voldriverd.engine import extract
from voldriverd.errors import Invalid, NotFound
from voldriverd.kernel import run, tree

pytestmark = pytest.mark.root


@pytest.fixture
def place(session_scratch: Scratch) -> Iterator[Path]:
    """Return a directory on ext4 that holds the empty directories `root` and `out`."""
    path = session_scratch.shared("extract", "ext4") / "place"
    for name in ("root", "out"):
        (path / name).mkdir(parents=True)
    yield path
    tree.vanish(path)


def unpack(place: Path, path: str) -> Path:
    """Extract a path into `out` by GNU tar, with all that it knows."""
    argv = [
        "tar",
        "-x",
        "--numeric-owner",
        "-p",
        "--xattrs",
        "--xattrs-include=*",
        "--warning=no-timestamp",
        "-C",
        str(place / "out"),
    ]
    stream = b"".join(extract.archive(place / "root", path))
    done = subprocess.run(argv, input=stream, check=True, capture_output=True)
    assert done.stderr == b""
    return place / "out"


def members(place: Path, path: str) -> dict[str, tarfile.TarInfo]:
    """Return the entries as Python's tarfile reads them."""
    stream = io.BytesIO(b"".join(extract.archive(place / "root", path)))
    with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as file:
        return {info.name: info for info in file}


def _likeness(root: Path) -> dict[bytes, Facts]:
    """Describe a tree without what tar does not carry: atimes, flags, holes."""
    found = describe(root)
    for facts in found.values():
        facts["times"] = str(facts["times"]).split(",")[1]
        facts.pop("flags", None)
        facts.pop("data", None)
    return found


def test_a_folder_comes_out_as_it_was(place: Path) -> None:
    folder = place / "root" / "folder"
    (folder / "inner" / "empty").mkdir(parents=True)
    (folder / "file").write_bytes(os.urandom(1_000_000))
    (folder / "empty").write_bytes(b"")
    (folder / "block").write_bytes(bytes(512))
    os.chown(folder / "file", 12, 34)
    (folder / "file").chmod(0o6751)
    (folder / "inner").chmod(0o1700)
    os.chown(folder / "inner", 4_000_000_000, 3_000_000_000)
    os.link(folder / "file", folder / "inner" / "hard link")
    (folder / "link").symlink_to("x" * 500)
    os.utime(folder / "link", ns=(2**61, 5), follow_symlinks=False)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "device", stat.S_IFBLK | 0o600, os.makedev(259, 100_000))
    for name in ("é" * 100, os.fsdecode(b"\xff\n"), "n" * 255):
        (folder / name).write_bytes(name.encode(errors="surrogateescape"))
    os.utime(folder / "file", ns=(0, 1_234_567_890_123_456_789))
    os.utime(folder / "empty", ns=(0, -1_500_000_000))
    assert _likeness(unpack(place, "folder") / "folder") == _likeness(folder)


def test_extended_attributes_come_out_as_they_were(place: Path) -> None:
    (place / "root" / "file").write_bytes(b"content")
    (place / "root" / "directory").mkdir()
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(place / "root" / "file", "security.capability", capability)
    os.setxattr(place / "root" / "file", "user.binary", bytes(range(256)))
    os.setxattr(place / "root" / "file", "user.a=b%3D", b"\n")
    os.setxattr(place / "root" / "file", "user.long", b"x" * 990)
    os.setxattr(place / "root" / "directory", "trusted.overlay.opaque", b"y")
    run.run(["setfacl", "-m", "u:1000:rwx", str(place / "root" / "file")])
    run.run(["setfacl", "-d", "-m", "u:1000:rwx", str(place / "root" / "directory")])
    assert _likeness(unpack(place, "")) == _likeness(place / "root")


def test_one_file_comes_under_its_own_name(place: Path) -> None:
    (place / "root" / "a" / "b").mkdir(parents=True)
    (place / "root" / "a" / "b" / "file").write_bytes(b"content")
    assert list(members(place, "a/b/file")) == ["file"]
    assert (unpack(place, "/a//b/./file") / "file").read_bytes() == b"content"


@pytest.mark.parametrize("path", ["", ".", "/", "./"])
def test_the_root_comes_as_a_dot(place: Path, path: str) -> None:
    (place / "root" / "file").write_bytes(b"content")
    assert list(members(place, path)) == [".", "./file"]


def test_a_folder_holds_all_below_it_once(place: Path) -> None:
    for name in ("a/b/c", "a/d", "other"):
        (place / "root" / name).mkdir(parents=True)
        (place / "root" / name / "file").write_bytes(b"")
    expected = {"a", "a/b", "a/b/c", "a/b/c/file", "a/d", "a/d/file"}
    stream = io.BytesIO(b"".join(extract.archive(place / "root", "a")))
    with tarfile.open(fileobj=stream, mode="r:") as file:
        names = file.getnames()
    assert set(names) == expected
    assert len(names) == len(expected)


def test_a_directory_comes_before_what_is_in_it(place: Path) -> None:
    nest(place / "root", 40)
    assert list(members(place, "d")) == ["/".join(["d"] * depth) for depth in range(1, 41)]


def test_a_symlink_at_the_end_is_archived_as_such(place: Path) -> None:
    (place / "root" / "link").symlink_to("/etc/passwd")
    info = members(place, "link")["link"]
    assert info.issym()
    assert info.linkname == "/etc/passwd"


def test_a_symlink_on_the_way_is_followed_beneath_the_root(place: Path) -> None:
    (place / "root" / "releases" / "5").mkdir(parents=True)
    (place / "root" / "releases" / "5" / "file").write_bytes(b"content")
    (place / "root" / "releases" / "current").symlink_to("../releases/5")
    assert list(members(place, "releases/current/file")) == ["file"]


@pytest.mark.parametrize("target", ["/etc", "../out", "loop"])
def test_a_symlink_on_the_way_that_leads_out_is_invalid(place: Path, target: str) -> None:
    (place / "root" / "loop").symlink_to(target)
    with pytest.raises(Invalid, match="cannot read path loop/passwd") as caught:
        extract.archive(place / "root", "loop/passwd")
    assert caught.value.field == "path"


@pytest.mark.parametrize("path", ["..", "../out", "a/../../out", "a/..", "a\0b"])
def test_dots_and_zero_bytes_are_invalid(place: Path, path: str) -> None:
    (place / "root" / "a").mkdir()
    with pytest.raises(Invalid, match="cannot read path") as caught:
        extract.archive(place / "root", path)
    assert caught.value.field == "path"


def test_a_name_that_is_too_long_is_invalid(place: Path) -> None:
    with pytest.raises(Invalid, match="cannot read path"):
        extract.archive(place / "root", "x" * 300)


@pytest.mark.parametrize("path", ["absent", "absent/file", "file/inner"])
def test_what_is_absent_is_not_found(place: Path, path: str) -> None:
    (place / "root" / "file").write_bytes(b"")
    with pytest.raises(NotFound, match=f"cannot read path {path}"):
        extract.archive(place / "root", path)


def test_a_socket_is_left_out(place: Path) -> None:
    os.mknod(place / "root" / "socket", stat.S_IFSOCK | 0o600)
    assert list(members(place, "")) == ["."]


def test_a_size_of_more_than_eight_gib_is_told(place: Path) -> None:
    with (place / "root" / "huge").open("wb") as file:
        file.truncate(9 << 30)
    stream = extract.archive(place / "root", "huge")
    info = tarfile.TarInfo.frombuf
    first = next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert b" size=9663676416\n" in first[:1_024]
    assert info(first[1_024:1_536], "utf-8", "strict").size == 0


@pytest.mark.parametrize("length", [*range(1, 20), *range(85, 110), *range(980, 1_010)])
def test_the_length_of_a_record_counts_its_own_digits(length: int) -> None:
    record = extract._record(b"k", b"x" * length)
    assert int(record.split(b" ")[0]) == len(record)


def test_a_mount_inside_is_refused_by_its_path(place: Path) -> None:
    (place / "root" / "a" / "b").mkdir(parents=True)
    stream = extract.archive(place / "root", "a")
    with bound(place / "out", place / "root" / "a" / "b"), pytest.raises(OSError, match=r"mounted.*'b'") as caught:
        list(stream)
    assert caught.value.errno == errno.EBUSY


def test_a_path_across_a_mount_is_invalid(place: Path) -> None:
    (place / "root" / "a").mkdir()
    (place / "out" / "file").write_bytes(b"secret")
    with bound(place / "out", place / "root" / "a"), pytest.raises(Invalid):
        extract.archive(place / "root", "a/file")


def test_a_file_that_shrinks_while_it_is_read_is_an_error_that_names_it(place: Path) -> None:
    (place / "root" / "file").write_bytes(bytes(4 << 20))
    stream = extract.archive(place / "root", "")
    next(stream)
    os.truncate(place / "root" / "file", 1 << 20)
    with pytest.raises(OSError, match=r"shrank.*\./file") as caught:
        list(stream)
    assert caught.value.errno == errno.ESTALE


def test_what_is_too_deep_to_be_extracted_is_an_error(place: Path) -> None:
    nest(place / "root", 3_000)
    with few_descriptors(tree._FDS_KEPT + 8), pytest.raises(OSError, match="File name too long: 'd/d/d") as caught:
        list(extract.archive(place / "root", "d"))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_the_way_of_a_fifo_is_never_waited_for(place: Path) -> None:
    os.mkfifo(place / "root" / "fifo")
    assert members(place, "fifo")["fifo"].isfifo()


def test_pieces_are_of_bounded_size(place: Path) -> None:
    (place / "root" / "file").write_bytes(bytes(5 << 20))
    for number in range(500):
        (place / "root" / str(number)).write_bytes(bytes(1_000))
    sizes = [len(piece) for piece in extract.archive(place / "root", "")]
    assert max(sizes) < 600 << 10
    assert min(sizes[:-1]) >= 256 << 10


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_nothing_stays_open_when_the_reader_stops_early(place: Path, taken: int) -> None:
    nest(place / "root", 30)
    (place / "root" / "d" / "file").write_bytes(bytes(3 << 20))
    before = os.listdir("/proc/self/fd")
    stream = extract.archive(place / "root", "d")
    for _ in range(taken):
        next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_symlink_that_takes_a_directorys_place_is_never_followed(place: Path) -> None:
    (place / "out" / "secret").write_bytes(b"secret")
    (place / "root" / "one" / "inner").mkdir(parents=True)
    (place / "root" / "other").symlink_to("../out")
    for found in _archived_under_attack(place, lambda: members(place, "")):
        assert not any(name.endswith("secret") for name in found)
    for found in _archived_under_attack(place, lambda: members(place, "one/secret")):
        assert found == {}


def _archived_under_attack(
    place: Path, archive: Callable[[], dict[str, tarfile.TarInfo]]
) -> Iterator[dict[str, tarfile.TarInfo]]:
    stop = threading.Event()
    attacker = threading.Thread(target=_swap, args=(place / "root", stop))
    attacker.start()
    try:
        for _ in range(100):
            try:
                yield archive()
            except (OSError, Invalid, NotFound):  # caught in the act
                continue
    finally:
        stop.set()
        attacker.join()


def _swap(root: Path, stop: threading.Event) -> None:
    one, other, aside = (str(root / name) for name in ("one", "other", "aside"))
    while not stop.is_set():
        os.rename(one, aside)
        os.rename(other, one)
        os.rename(aside, other)
