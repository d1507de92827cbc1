"""Tar streams that a container's root may have had a hand in, and what becomes of them here."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voldriverd.cli import unpack
from voldriverd.errors import Error, Exists, Unusable


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, *, content: bytes = b"", **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.uid, info.gid = kind, len(content), os.geteuid(), os.getegid()
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE, **fields)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind, linkname=target)


class Stream:
    """An archive that comes in pieces, and may end too early."""

    def __init__(self, *entries: tuple[tarfile.TarInfo, bytes], cut_bytes: int = 0) -> None:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for info, content in entries:
                archive.addfile(info, io.BytesIO(content))
        whole = made.getvalue()
        self._left = io.BytesIO(whole[: len(whole) - cut_bytes])

    def read(self, size: int, /) -> bytes:
        return self._left.read(min(size, 1000))


def unpacked(stream: Stream, target: Path, *, name: str = "top") -> list[str]:
    return list(unpack.unpack(stream, str(target), name=name))


HOSTILE: list[tuple[str, Callable[[], Stream]]] = [
    ("a parent", lambda: Stream(folder("top"), entry("top/../evil"))),
    ("a parent alone", lambda: Stream(folder("top"), entry(".."))),
    ("an absolute name", lambda: Stream(folder("top"), entry("/evil"))),
    ("a sibling", lambda: Stream(folder("top"), entry("evil"))),
    ("a name that begins like the top", lambda: Stream(folder("top"), entry("topevil"))),
    ("below a symlink", lambda: Stream(folder("top"), link("top/out", ".."), entry("top/out/evil"))),
    ("below a symlink at the top", lambda: Stream(link("top", "."), entry("top/evil"))),
    ("below a file", lambda: Stream(folder("top"), entry("top/file"), entry("top/file/evil"))),
    ("over a symlink", lambda: Stream(folder("top"), link("top/out", "../evil"), entry("top/out"))),
    ("a folder over a symlink", lambda: Stream(folder("top"), link("top/out", ".."), folder("top/out"))),
    ("a folder twice", lambda: Stream(folder("top"), folder("top/a"), folder("top/a"))),
    ("an empty name", lambda: Stream(folder("top"), entry("top//evil"))),
    ("a dot", lambda: Stream(folder("top"), entry("top/."))),
    ("two at the top", lambda: Stream(entry("top"), entry("top2"))),
    ("a hard link outside", lambda: Stream(folder("top"), link("top/a", "/etc/passwd", tarfile.LNKTYPE))),
    (
        "a hard link to a later one",
        lambda: Stream(folder("top"), link("top/a", "top/b", tarfile.LNKTYPE), entry("top/b")),
    ),
    ("nothing", Stream),
    ("only a device", lambda: Stream(entry("top", tarfile.CHRTYPE))),
    ("too short a header", lambda: Stream(folder("top"), entry("top/a", content=b"x" * 600), cut_bytes=9_000)),
    ("too short a file", lambda: Stream(entry("top", content=b"x" * 50_000), cut_bytes=30_000)),
]


@pytest.mark.parametrize("stream", [each for _, each in HOSTILE], ids=[name for name, _ in HOSTILE])
def test_what_is_unsound_is_refused_and_leaves_nothing(stream: Callable[[], Stream], tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(Unusable, match="cannot unpack"):
        unpacked(stream(), inner)
    assert os.listdir(tmp_path) == ["inner"]
    assert os.listdir(inner) == []


def test_a_stream_that_fails_while_it_comes_leaves_nothing(tmp_path: Path) -> None:
    class Failing:
        def read(self, _size: int, /) -> bytes:
            raise Unusable("cut short")

    with pytest.raises(Unusable, match="cut short"):
        list(unpack.unpack(Failing(), str(tmp_path), name="top"))
    assert os.listdir(tmp_path) == []


def test_symlinks_are_made_as_they_are_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    stream = Stream(folder("top"), link("top/a", "/etc/passwd"), link("top/b", "../victim"), link("top/c", "nowhere"))
    assert unpacked(stream, tmp_path) == []
    assert {name: os.readlink(tmp_path / "top" / name) for name in os.listdir(tmp_path / "top")} == {
        "a": "/etc/passwd",
        "b": "../victim",
        "c": "nowhere",
    }
    assert (tmp_path / "victim").read_text() == "untouched"


def test_a_symlink_at_the_target_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "top").symlink_to("victim")
    unpacked(Stream(entry("top", content=b"new")), tmp_path)
    assert not (tmp_path / "top").is_symlink()
    assert ((tmp_path / "top").read_text(), (tmp_path / "victim").read_text()) == ("new", "untouched")


def test_special_bits_go_and_other_modes_and_times_stay(tmp_path: Path) -> None:
    time_ns = 1_700_000_000_123_456_789
    headers = {"mtime": "1700000000.123456789"}
    stream = Stream(
        folder("top", mode=0o1700, pax_headers=headers),
        entry("top/program", content=b"x", mode=0o6755, pax_headers=headers),
        folder("top/closed", mode=0o500),
        entry("top/closed/file", mode=0o400),
    )
    unpacked(stream, tmp_path)
    modes = {name: stat.S_IMODE((tmp_path / "top" / name).stat().st_mode) for name in (".", "program", "closed")}
    assert modes == {".": 0o1700, "program": 0o755, "closed": 0o500}
    assert (tmp_path / "top").stat().st_mtime_ns == time_ns
    assert (tmp_path / "top" / "program").stat().st_mtime_ns == time_ns


@pytest.mark.parametrize(
    ("text", "time_ns"), [("-1.5", -1_500_000_000), ("7", 7_000_000_000), ("0.000000001", 1), ("-0.25", -250_000_000)]
)
def test_times_are_read_to_the_nanosecond(tmp_path: Path, text: str, time_ns: int) -> None:
    unpacked(Stream(entry("top", pax_headers={"mtime": text})), tmp_path)
    assert (tmp_path / "top").stat().st_mtime_ns == time_ns


def test_hard_links_among_what_is_there_stay_links(tmp_path: Path) -> None:
    stream = Stream(
        folder("top"),
        entry("top/a", content=b"x"),
        link("top/b", "top/a", tarfile.LNKTYPE),
        link("top/s", "nowhere"),
        link("top/t", "top/s", tarfile.LNKTYPE),
    )
    unpacked(stream, tmp_path)
    assert (tmp_path / "top" / "a").stat().st_ino == (tmp_path / "top" / "b").stat().st_ino
    assert os.readlink(tmp_path / "top" / "t") == "nowhere"


def test_what_cannot_be_made_is_named(tmp_path: Path) -> None:
    kinds = {"f": tarfile.FIFOTYPE, "c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "x": tarfile.CONTTYPE}
    stream = Stream(folder("top"), *(entry(f"top/{name}", kind) for name, kind in kinds.items()))
    assert unpacked(stream, tmp_path) == [
        "left out: top/f is a fifo",
        "left out: top/c is a device",
        "left out: top/b is a device",
    ]
    assert os.listdir(tmp_path / "top") == ["x"]  # a "contiguous" file is a file


@pytest.mark.parametrize(
    ("made", "there", "is_replaced"),
    [("file", "file", True), ("file", "folder", False), ("folder", "file", False), ("folder", "folder", False)],
)
def test_only_a_file_is_replaced_and_only_by_a_file(
    tmp_path: Path, made: str, there: str, *, is_replaced: bool
) -> None:
    place = tmp_path / "top"
    if there == "file":
        place.write_text("old")
    else:
        (place / "old").mkdir(parents=True)
    stream = Stream(entry("top", content=b"new") if made == "file" else folder("top"))
    if is_replaced:
        unpacked(stream, tmp_path)
        assert place.read_text() == "new"
    else:
        with pytest.raises(Exists, match="it exists"):
            unpacked(stream, tmp_path)
        assert (place / "old").is_dir() or place.read_text() == "old"
    assert os.listdir(tmp_path) == ["top"]


def test_a_target_that_is_no_directory_is_the_copy_s_own_name(tmp_path: Path) -> None:
    unpacked(Stream(entry("top", content=b"x")), tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"x"


def test_a_disk_that_says_no_is_said(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"cannot write .*/none/x: No such file or directory"):
        unpacked(Stream(entry("top")), tmp_path / "none" / "x")


def test_a_top_that_is_a_dot_is_the_whole(tmp_path: Path) -> None:
    unpacked(Stream(folder("."), folder("./a"), entry("./a/b", content=b"x")), tmp_path, name="all")
    assert (tmp_path / "all" / "a" / "b").read_bytes() == b"x"
