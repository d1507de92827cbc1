"""engine/archives: what is a whole archive, plain or compressed, and what is refused with the place of the fault."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator

import pytest
import zstandard

from voldriverd.engine import archives
from voldriverd.errors import Invalid
from voldriverd.kernel import tar

CONTENT = bytes(range(256)) * 300


def plain(*names: str, kind: bytes = tarfile.REGTYPE, link: str = "", form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name in names or ("./file",):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(CONTENT) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(CONTENT))
    return made.getvalue()


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def read(content: bytes, *, size: int = 10_000) -> bytes:
    return b"".join(part.data or b"" for part in archives.read(pieces(content, size)).parts)


def refused(content: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        read(content)
    return str(caught.value)


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.mark.parametrize("size", [1, 511, 512, 10_000, 1 << 20])
def test_an_archive_is_handed_on_up_to_its_end_however_it_comes(size: int) -> None:
    content = plain("./one", "./two")
    found = read(content, size=size)
    assert content.startswith(found)
    assert content[len(found) :].strip(b"\0") == b""
    assert found.endswith(bytes(2 * tar.BLOCK_BYTES))


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("size", [1, 777, 1 << 20])
def test_a_compressed_archive_is_unpacked(name: str, size: int) -> None:
    packed = COMPRESSED[name](plain())
    assert archives.read(iter([packed])).is_compressed
    assert read(packed, size=size) == read(plain())


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_was_compressed_in_pieces_is_whole(name: str) -> None:
    content, pack = plain(), COMPRESSED[name]
    assert read(pack(content[:5_000]) + pack(content[5_000:])) == read(content)


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_was_compressed_and_cut_is_refused(name: str) -> None:
    assert "ends too early" in refused(COMPRESSED[name](plain())[:-20])


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_was_compressed_and_damaged_is_refused(name: str) -> None:
    packed = bytearray(COMPRESSED[name](plain()))
    packed[len(packed) // 2 : len(packed) // 2 + 8] = b"damaged!"
    assert refused(bytes(packed)).startswith("cannot read the archive")


def test_a_megabyte_of_zeros_costs_no_more_than_a_piece_at_a_time() -> None:
    packed = gzip.compress(bytes(32 << 20), 1)
    assert len(packed) < 1 << 20
    largest = max(len(piece) for piece in archives._gunzip(iter([packed])))
    assert largest <= archives.PIECE_BYTES


def test_an_archive_that_was_cut_is_refused_wherever_that_was() -> None:
    content = read(plain("./one", "./two"))
    for end in (700, 5_000, len(content) - 1_024, len(content) - 512, len(content) - 1):
        assert "too early" in refused(content[:end]), end


def test_what_follows_the_end_is_refused() -> None:
    assert "follows its end" in refused(plain() + plain())
    assert "too early" in refused(read(plain())[: -2 * tar.BLOCK_BYTES] + bytes(512) + plain())


@pytest.mark.parametrize("content", [b"", b"text\n" * 200, bytes(10_240), b"<html>" + b"x" * 5_000])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    assert refused(content).startswith("cannot read the archive")


def test_what_else_packs_is_named() -> None:
    assert "packed by bzip2" in refused(bz2.compress(plain()))
    assert "packed by zip" in refused(b"PK\x03\x04" + bytes(600))


@pytest.mark.parametrize("name", ["/etc/passwd", "../out", "a/../../out", "a/.."])
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    assert "leads out of the tree" in refused(plain(name))
    assert "leads out of the tree" in refused(plain("./file", kind=tarfile.LNKTYPE, link=name))


def test_a_symlink_may_lead_where_it_likes() -> None:
    assert read(plain("./link", kind=tarfile.SYMTYPE, link="/etc/passwd"))


def test_a_kind_that_nobody_knows_is_refused_naming_it() -> None:
    assert "'./odd' is of a kind" in refused(plain("./odd", kind=b"V"))


def test_what_the_source_raises_passes_through() -> None:
    def broken() -> Iterator[bytes]:
        yield plain()[:600]
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        list(archives.read(broken()).parts)
