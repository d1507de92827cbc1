"""Bad options through the Docker plugin: each has a clear error of one line, and nothing has changed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.running import Running, pools_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root

DRIVERS: Final = ("btrfs", "loop", "directory")
SIZES: Final = (
    *(
        "",
        " ",
        "0",
        "-1",
        "+1G",
        "1e3",
        "1 000",
        "10X",
        "10GG",
        "G",
        "ten",
        "nan",
        "inf",
        "0x10",
        "1,5G",
        "1..5G",
        "²G",
    ),
    *("1k", "16M-", "10G\n", "1\x00G", "9" * 30, "8388608T", "9223372036854775808"),
)
BAD: Final = [
    *(("loop", {"size": size}, "size") for size in SIZES),
    *(("btrfs", {"size": size}, "size") for size in ("10X", "4k", "0")),
    *(("loop", {"fs": value}, "fs") for value in ("ntfs", "", "EXT4 ", "btrfs", "ext4,xfs")),
    *(("loop", {"thick": value}, "thick") for value in ("", "maybe", "2", "yes please")),
    *(("loop", {option: "-1"}, option) for option in ("uid", "gid")),
    *(("loop", {option: value}, option) for option in ("uid", "gid") for value in ("root", "4294967295", "1.5", "")),
    *(("loop", {"mode": value}, "mode") for value in ("rwx", "0999", "17777", "-1", "", "0o755x")),
    *((None, {"driver": value}, "driver") for value in ("zfs", "", "Btrfs/", "../loop", "btrfs\n", "x" * 10_000)),
    *((None, {"pool": value}, "pool") for value in ("nix", "", "../x", "x" * 10_000)),
    (None, {"pool": "loop", "driver": "btrfs"}, "driver"),
    *(("btrfs", {"compression": value}, "compression") for value in ("gzip", "", "zstd:99")),
    ("btrfs", {"nocow": "perhaps"}, "nocow"),
    ("btrfs", {"nocow": "yes", "compression": "zstd"}, "nocow"),
    *((None, {"protected": value}, "protected") for value in ("", "maybe")),
    *((None, {"from": value}, "nobody") for value in ("nobody", "nobody@s")),
    *((None, {"from": value}, "from") for value in ("", "@", "db@", "@s", "db@a@b", "../db", "db@" + "s" * 256)),
    (None, {"from": "db@nothing"}, "nothing"),
    (None, {"from": "backup:1b1"}, "backup"),
    (None, {"from": "db", "driver": "btrfs"}, "driver"),
    (None, {"from": "db", "pool": "btrfs"}, "pool"),
    (None, {"from": "db", "size": "16M"}, "size"),
    (None, {"from": "db", "fs": "xfs"}, "fs"),
    *(
        (None, {"from": "db", option: value}, option)
        for option, value in (("uid", "1"), ("mode", "700"), ("thick", "1"))
    ),
    *((None, {key: "x"}, key[:5]) for key in ("sise", "SIZE ", "label", "label.", "label.\n", "nosuch")),
    (None, {"label.a": "x" * 5_000}, "label.a"),
    *(("directory", {option: value}, option) for option, value in (("size", "1G"), ("thick", "yes"), ("nocow", "yes"))),
    ("directory", {"compression": "zstd"}, "compression"),
    ("directory", {"fs": "ext4"}, "fs"),
    *(("btrfs", {option: value}, option) for option, value in (("thick", "yes"), ("fs", "ext4"))),
    *(("loop", {option: value}, option) for option, value in (("nocow", "yes"), ("compression", "zstd"))),
]


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = session_scratch.shared("bad-input", "btrfs")
    pools = {driver: (driver, place / driver) for driver in DRIVERS}
    with Running(tmp_path_factory.mktemp("bad"), config=pools_config(**pools)) as running:
        running.plugin("VolumeDriver.Create", Name="db", Opts={"driver": "loop", "size": "32M"})
        yield running
        assert "Traceback" not in running.log


def everything(daemon: Running, place: Path) -> object:
    """Return what there is: volumes as they are shown, trees, mount points, links."""
    volumes = daemon.api("GET", "/v1/volumes").body["data"]
    shown = [{key: value for key, value in row.items() if key != "usedBytes"} for row in volumes]
    trees = {driver: os.listdir(place / driver / "trees") for driver in DRIVERS}
    return shown, trees, os.listdir(daemon.root / "mounts")


@pytest.mark.parametrize(("driver", "options", "named"), BAD)
def test_a_bad_option_is_an_error_of_one_line_that_names_it_and_nothing_has_changed(
    daemon: Running, session_scratch: Scratch, driver: str | None, options: dict[str, str], named: str
) -> None:
    place = session_scratch.shared("bad-input", "btrfs")
    before = everything(daemon, place)
    given = options if driver is None else {"driver": driver, **options}
    answer = daemon.plugin("VolumeDriver.Create", Name="refused", Opts=given)
    assert answer.status == 500
    text = answer.body["Err"]
    assert named in text
    assert text.isprintable()
    assert len(text) < 500
    assert "internal" not in text
    assert everything(daemon, place) == before
