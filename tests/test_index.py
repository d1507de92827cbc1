"""backup/index: what is where in an archive, and files taken out by it."""

import io
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import archive
from tests.likeness import describe
from voldriverd.backup import index
from voldriverd.backup.index import Index, Row
from voldriverd.errors import NotFound, Unusable
from voldriverd.kernel import tar

_ROOT: Final = tar.Member(b"./", tar.Kind.DIRECTORY, 0o755, 0, 0, 5)


def file(path: str, content: bytes) -> bytes:
    """Return a member as an archive has it, with ns in its time and so with three headers."""
    member = tar.Member(b"./" + os.fsencode(path), tar.Kind.FILE, 0o640, 1, 2, 3, len(content))
    return tar.header(member) + content + bytes(tar.padding(len(content)))


def linked(path: str, target: str) -> bytes:
    """Return a hard link as an archive has it."""
    return tar.header(tar.Member(b"./" + path.encode(), tar.Kind.LINK, 0, 0, 0, 3, link=b"./" + target.encode()))


def folder(path: str) -> bytes:
    """Return a directory as an archive has it."""
    return tar.header(replace(_ROOT, path=b"./" + path.encode() + b"/"))


def archived(*members: bytes) -> bytes:
    """Return an archive."""
    return b"".join(members) + bytes(1_024)


def rows_of(data: bytes, size: int = 1 << 20) -> list[Row]:
    """Return what the index of an archive has, fed in pieces."""
    found = Index()
    for start in range(0, len(data), size):
        found.feed(data[start : start + size])
    return list(found)


def taken(data: bytes, path: str, rows: list[Row] | None = None) -> bytes:
    def read(start: int, length: int) -> Iterator[bytes]:
        for at in range(start, start + length, 700):
            yield data[at : min(at + 700, start + length)]

    return b"".join(index.extract(rows_of(data) if rows is None else rows, path, read))


def members(data: bytes) -> dict[str, tuple[bytes, str, bytes | None]]:
    """Return (type, link, content) of each entry as Python's tarfile reads it."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as found:
        return {info.name: (info.type, info.linkname, _content(found, info)) for info in found}


def _content(found: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    content = found.extractfile(info) if info.isfile() or info.islnk() else None
    return None if content is None else content.read()


def test_rows_say_where_each_member_begins_and_ends() -> None:
    parts = [folder(""), file("a", b""), folder("d"), file("d/b", b"x" * 513), linked("d/c", "a")]
    rows = rows_of(archived(*parts))
    assert [path for path, _, _ in rows] == [".", "a", "d", "d/b", "d/c"]
    position = 0
    for (_, start, length), part in zip(rows, parts, strict=True):
        assert (start, length) == (position, len(part))
        position += len(part)


@pytest.mark.parametrize("size", [1, 7, 511, 512, 513, 10_000])
def test_pieces_may_end_anywhere(size: int) -> None:
    data = archived(folder(""), file("long/" * 60 + "name", os.urandom(1_500)), file("b", b"x"))
    assert rows_of(data, size) == rows_of(data)
    assert len(rows_of(data)) == 3


def test_an_index_is_between_members_where_headers_are_whole() -> None:
    data = archived(file("a", b"x" * 600))
    header_bytes = len(data) - 1_024 - 1_024
    found = Index()
    assert found.is_between
    for position in range(header_bytes):
        found.feed(data[position : position + 1])
        assert found.is_between == (position == header_bytes - 1)
    found.feed(data[header_bytes:])
    assert found.is_between
    assert len(found) == 1


@given(st.binary(max_size=3_000), st.integers(0, 3))
def test_no_bytes_are_an_error(content: bytes, before: int) -> None:
    whole = file("a", b"content") * before
    assert rows_of(whole + content)[:before] == rows_of(whole)


def test_spoilt_archives_are_no_error() -> None:
    data = archived(folder(""), file("x" * 200, b"content"), file("b", b"x"))
    for seed in range(300):
        chance = random.Random(seed)
        spoilt = bytearray(data)
        spoilt[chance.randrange(len(data))] = chance.randrange(256)
        rows_of(bytes(spoilt))


@pytest.mark.parametrize("form", ["posix", "gnu", "oldgnu", "ustar", "v7"])
def test_archives_of_gnu_tar_are_indexed(tmp_path: Path, form: str) -> None:
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    with (tmp_path / "tree" / "folder" / "sparse").open("wb") as sparse:
        for number in range(40):  # more than fit into one header of the old formats
            sparse.seek(number * 50_000)
            sparse.write(b"content")
    (tmp_path / "tree" / "folder" / ("n" * (60 if form in {"ustar", "v7"} else 150))).write_bytes(b"x" * 3_000)
    (tmp_path / "tree" / "link").symlink_to("t" * (60 if form in {"ustar", "v7"} else 150))
    options = [f"--format={form}", "--sort=name", *(["-S"] if form in {"posix", "gnu", "oldgnu"} else [])]
    made = subprocess.run(["tar", "-c", *options, "-C", tmp_path / "tree", "."], check=True, capture_output=True).stdout
    rows = rows_of(made)
    with tarfile.open(fileobj=io.BytesIO(made)) as found:
        infos = found.getmembers()
    assert [path for path, _, _ in rows] == [info.name.removeprefix("./") for info in infos]
    for (_, start, length), info in zip(rows, infos, strict=True):
        assert start <= info.offset_data <= start + length
        alone = made[start : start + length] + bytes(1_024)
        with tarfile.open(fileobj=io.BytesIO(alone)) as found:
            assert [each.name for each in found.getmembers()] == [info.name]


def test_odd_names_are_told_as_they_are() -> None:
    names = ["new\nline", os.fsdecode(b"\xff\xfe"), "é" * 80, "a b", "x" * 255]
    assert [path for path, _, _ in rows_of(archived(*(file(name, b"") for name in names)))] == names


def test_deep_trees_take_little_memory() -> None:
    found = Index()
    for depth in range(3_000):
        found.feed(folder("d" + "/d" * depth))
        found.feed(file("d" + "/d" * depth + "/file", b""))
    assert len(found._rests) + 10 * len(found) < 30 * 6_000
    rows = list(found)
    assert rows[3][0] == "d/d/file"
    assert rows[-1][0] == ("d/" * 3_000)[:4_096]
    assert rows[-1][1] == sum(length for _, _, length in rows[:-1])


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "a.b", "é", ".x", "x" * 200]), min_size=1, max_size=25)))
def test_paths_of_any_order_come_back(paths: list[list[str]]) -> None:
    names = ["/".join(names) for names in paths]
    assert [path for path, _, _ in rows_of(archived(*(file(name, b"") for name in names)))] == [
        os.fsdecode(os.fsencode(name)[:4_096]) for name in names
    ]


# One file or folder


_TREE: Final = archived(
    folder(""),
    file("a", b"content of a"),
    file("folder-more", b"beside"),
    folder("folder"),
    file("folder/b", b"content of b"),
    linked("folder/a again", "a"),
    linked("folder/a once more", "a"),
    linked("folder/b again", "folder/b"),
    folder("folder/inner"),
    file("folder/inner/c", bytes(5_000)),
    folder("other"),
    linked("other/c", "folder/inner/c"),
)


def test_one_file_comes_under_its_own_name() -> None:
    assert members(taken(_TREE, "folder/inner/c")) == {"c": (tarfile.REGTYPE, "", bytes(5_000))}


@pytest.mark.parametrize("path", ["folder", "/folder", "./folder/", "folder//."])
def test_a_folder_comes_with_all_below_it_and_nothing_else(path: str) -> None:
    found = members(taken(_TREE, path))
    assert list(found) == [
        *("folder", "folder/b", "folder/b again", "folder/inner", "folder/inner/c"),
        *("folder/a again", "folder/a once more"),
    ]
    assert found["folder/b again"] == (tarfile.LNKTYPE, "folder/b", b"content of b")


def test_a_link_to_a_file_outside_of_the_folder_becomes_that_file() -> None:
    found = members(taken(_TREE, "folder"))
    assert found["folder/a again"] == (tarfile.REGTYPE, "", b"content of a")
    assert found["folder/a once more"] == (tarfile.LNKTYPE, "folder/a again", b"content of a")


def test_a_link_alone_becomes_its_file() -> None:
    assert members(taken(_TREE, "other/c")) == {"c": (tarfile.REGTYPE, "", bytes(5_000))}


@pytest.mark.parametrize("path", ["", ".", "/", "./"])
def test_the_root_comes_as_a_dot(path: str) -> None:
    found = members(taken(_TREE, path))
    assert list(found) == [".", *(f"./{row[0]}" for row in rows_of(_TREE)[1:])]
    assert found["./other/c"] == (tarfile.LNKTYPE, "./folder/inner/c", bytes(5_000))


@pytest.mark.parametrize("path", ["absent", "a/b", "fold", "folder/inner/c/d", "..", "folder/..", "a\0b"])
def test_what_is_absent_is_not_found_at_the_call(path: str) -> None:
    def read(_: int, __: int) -> Iterator[bytes]:
        raise AssertionError("nothing is read")

    with pytest.raises(NotFound, match="cannot read path"):
        index.extract(rows_of(_TREE), path, read)


def test_only_what_is_needed_is_read() -> None:
    rows = rows_of(_TREE)
    asked: list[tuple[int, int]] = []

    def read(start: int, length: int) -> Iterator[bytes]:
        asked.append((start, length))
        yield _TREE[start : start + length]

    list(index.extract(rows, "folder", read))
    first, last = rows[3], rows[9]
    assert asked == [(first[1], last[1] + last[2] - first[1]), (rows[1][1], rows[1][2])]


def test_rows_that_do_not_fit_the_body_are_unusable() -> None:
    shifted = [(path, start + 512, length) for path, start, length in rows_of(_TREE)]
    with pytest.raises(Unusable, match="cannot read the backup"):
        taken(_TREE, "folder", shifted)


def test_a_link_whose_file_is_in_no_row_is_unusable() -> None:
    with pytest.raises(Unusable, match="cannot read the backup: it has no 'a' to link to"):
        taken(_TREE, "folder", [row for row in rows_of(_TREE) if row[0] != "a"])


def test_a_body_that_ends_too_early_is_unusable() -> None:
    with pytest.raises(Unusable, match="cannot read the backup"):
        b"".join(index.extract(rows_of(_TREE), "folder", lambda start, length: iter([_TREE[start:][: length - 700]])))


@pytest.mark.root
def test_a_folder_of_a_tree_comes_out_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "tree" / "folder"
    (source / "inner").mkdir(parents=True)
    (source / "large").write_bytes(os.urandom(3_000_000))
    with (source / "sparse").open("wb") as sparse:
        sparse.seek(5 << 20)
        sparse.write(b"content")
        sparse.truncate(9 << 20)
    os.setxattr(source / "large", "trusted.name", b"value")
    (source / "link").symlink_to("x" * 300)
    os.link(source / "large", source / "inner" / "again")
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", stat.S_IFBLK | 0o600, os.makedev(259, 100_000))
    os.chown(source / "large", 4_000_000_000, 5)
    (source / os.fsdecode(b"\xff" * 120)).write_bytes(b"odd")
    with archive.write(tmp_path / "tree") as parts:
        data = b"".join(part.data or b"" for part in parts)
    (tmp_path / "out").mkdir()
    options = ["-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    out = taken(data, "folder")
    done = subprocess.run(["tar", *options, "-C", tmp_path / "out"], input=out, check=True, capture_output=True)
    assert done.stderr == b""
    before, after = describe(source), describe(tmp_path / "out" / "folder")
    for facts in (*before.values(), *after.values()):
        facts["times"] = str(facts["times"]).split(",")[1]
    assert after == before
