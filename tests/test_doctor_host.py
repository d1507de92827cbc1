"""`voldriver doctor` on hosts that lack something, on roots that were never used, and as another user than root."""

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.doctors import Patient, found
from tests.running import Running, pools_config
from tests.scratch import Scratch, count_ext4_error
from tests.world import until
from voldriverd import doctor
from voldriverd.config import Config, PoolConfig
from voldriverd.doctor import clock, features, host, scope, tools
from voldriverd.doctor.clock import Clock
from voldriverd.doctor.features import Direct, Quota
from voldriverd.doctor.finding import Check, Finding, Level, Trouble
from voldriverd.doctor.host import Kernel
from voldriverd.doctor.known import Known, KnownVolume
from voldriverd.doctor.tools import Tools
from voldriverd.kernel import clock as kernel_clock
from voldriverd.kernel.qgroup import Mode
from voldriverd.store import schema

pytestmark = pytest.mark.root

NOW = datetime(2026, 3, 4, tzinfo=UTC)
MARKER = '{"uuid": "u", "driver": "directory", "version": "1"}'


@pytest.fixture
def fresh(tmp_path: Path) -> Patient:
    """Give a root that was never used, and the configuration of one pool for each driver but btrfs."""
    return Patient(
        Running(tmp_path / "d", config=pools_config(images=("loop", tmp_path / "i"), www=("directory", tmp_path / "w")))
    )


def levels(findings: Iterator[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


# Kernel


def test_an_old_kernel_is_found(fresh: Patient) -> None:
    found(fresh.look_from("setarch", "--uname-2.6", checks=("kernel",)), "bad", "Linux 2.6.")


@pytest.mark.parametrize(
    ("release", "wants_simple_quotas", "level"),
    [
        ("5.7.19", False, Level.BAD),
        ("5.8.0", False, Level.NOTE),
        ("5.19.0-rc1", False, Level.NOTE),
        ("6.1.0-38-amd64", False, Level.OK),
        ("6.1.0-38-amd64", True, Level.BAD),
        ("5.10.0", True, Level.BAD),
        ("6.7.0", True, Level.OK),
        ("10.0", True, Level.OK),
        ("odd", False, Level.BAD),
    ],
)
def test_versions_of_the_kernel_and_what_they_lack(release: str, wants_simple_quotas: bool, level: Level) -> None:  # noqa: FBT001 - a column
    assert levels(host.judge_kernel(Kernel(release, wants_simple_quotas))) == [level]


@pytest.mark.parametrize(("missing", "level"), [("ext4", "bad"), ("xfs", "note")])
def test_a_file_system_that_the_kernel_does_not_know_is_found(
    fresh: Patient, tmp_path: Path, missing: str, level: str
) -> None:
    lines = Path("/proc/filesystems").read_text().splitlines()
    fake = tmp_path / "filesystems"
    fake.write_text("\n".join(line for line in lines if line.split()[-1] != missing) + "\n")
    hidden = "if [ -d /lib/modules ]; then mount -t tmpfs none /lib/modules; fi"
    command = f'{hidden}; mount --bind {fake} /proc/filesystems && exec "$@"'
    diagnosis = fresh.look_from("unshare", "--mount", "sh", "-c", command, "sh", checks=("file-systems",))
    found(diagnosis, level, f"no {missing}")


@pytest.mark.parametrize("name", ["modules.dep", "modules.builtin"])
def test_a_module_that_can_be_loaded_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    listed = tmp_path / os.uname().release / name
    listed.parent.mkdir()
    listed.write_text("kernel/fs/odd/odd.ko.xz: kernel/lib/crc.ko.xz\nkernel/fs/oddly.ko:\n")
    monkeypatch.setattr(host, "MODULES", tmp_path)
    monkeypatch.setattr(host, "_DRIVERS_NEED", {"btrfs": ("odd", "ly", "missing")})
    place = scope.Place(PoolConfig("p", "btrfs", tmp_path))
    looked = scope.Scope(Config(), NOW, places=(place,))
    assert [each.text for each in doctor.examine(looked, ["file-systems"])] == ["no ly", "no missing"]


def test_a_host_without_loop_devices_is_found(fresh: Patient) -> None:
    command = 'mount --bind /dev/null /dev/loop-control && exec "$@"'
    diagnosis = fresh.look_from("unshare", "--mount", "sh", "-c", command, "sh", checks=("loop-devices",))
    found(diagnosis, "bad", "LOOP_CONFIGURE fails: ")


@pytest.mark.parametrize(("lacking", "level"), [("mknod", "bad"), ("sys_resource", "note")])
def test_a_missing_capability_is_found_with_what_it_is_for(fresh: Patient, lacking: str, level: str) -> None:
    prefix = ("setpriv", f"--bounding-set=-{lacking}", f"--inh-caps=-{lacking}")
    diagnosis = fresh.look_from(*prefix, checks=("capabilities",))
    found(diagnosis, level, f"CAP_{lacking.upper()}")


def test_all_capabilities_are_well() -> None:
    assert levels(host.judge_capabilities(host.Held("it", (1 << 40) - 1))) == [Level.OK]


# Tools


def test_a_missing_tool_is_found_with_its_package(
    fresh: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tools, "SBIN", str(tmp_path))
    (tmp_path / "mkfs.xfs").symlink_to(shutil.which("mkfs.xfs") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    diagnosis = fresh.look("tools")
    missing = [
        "e2fsck, mkfs.ext4, resize2fs (Debian package e2fsprogs)",
        "xfs_db, xfs_growfs, xfs_repair (Debian package xfsprogs)",
    ]
    assert [
        ", ".join(sorted(text.partition(" (")[0].split(", "))) + " (" + text.partition(" (")[2]
        for text in diagnosis.of("bad")
    ] == missing
    assert diagnosis.findings[0]["remedy"] == "`apt install e2fsprogs`"


def test_nfs_needs_its_client(fresh: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "mount.nfs" else f"/usr/sbin/{name}")  # noqa: ARG005
    config = fresh.daemon.config_file
    config.write_text(config.read_text() + '[targets.t]\nurl = "nfs://server/share"\n')
    assert fresh.look("tools").of("bad") == ["mount.nfs (Debian package nfs-common)"]


def test_the_versions_of_tools_are_read(fresh: Patient) -> None:
    texts = " ".join(found["text"] for found in fresh.look("tools").findings)
    assert "e2fsprogs 1." in texts
    assert "xfsprogs 6." in texts


@pytest.mark.parametrize(
    ("package", "version", "quotas", "troubles"),
    [
        ("btrfs-progs", (6, 1, 3), False, [tools.OLD_BTRFS]),
        ("btrfs-progs", (6, 2), False, []),
        ("btrfs-progs", (6, 2), True, [tools.NO_CHECK]),
        ("btrfs-progs", (6, 7), True, []),
        ("e2fsprogs", (1, 47, 0), False, [tools.DEAF_EXT4]),
        ("e2fsprogs", (1, 47, 1), False, []),
        ("xfsprogs", (5, 0, 0), False, [tools.NO_REFLINKS]),
        ("xfsprogs", (6, 1, 0), False, []),
        ("xfsprogs", (), False, []),
    ],
)
def test_known_faults_of_versions(
    package: str,
    version: tuple[int, ...],
    quotas: bool,  # noqa: FBT001 - a column
    troubles: list[Trouble],
) -> None:
    judged = list(tools.judge(Tools({}, {package: version}, has_simple_quotas=quotas)))
    assert [each.meaning for each in judged if each.meaning] == [each.meaning for each in troubles]
    assert len(judged) == max(1, len(troubles))


# The clock


def test_a_clock_that_nobody_keeps_is_a_note() -> None:
    assert levels(clock.judge(Clock(NOW, NOW, is_kept=False))) == [Level.NOTE]
    assert levels(clock.judge(Clock(NOW, NOW, is_kept=True))) == [Level.OK]
    assert levels(clock.judge(Clock(NOW, None, is_kept=None))) == [Level.OK]


def test_the_kernel_tells_whether_somebody_keeps_the_clock() -> None:
    assert kernel_clock.is_synchronised() is not None


# Roots that were never used


def test_where_no_daemon_ever_ran_there_are_notes(fresh: Patient) -> None:
    diagnosis = fresh.look("database", "pools", "modes", "leaked-mounts", "leaked-loops", "space")
    assert diagnosis.status == 0
    assert diagnosis.of("note") == [
        f"there is none in {fresh.root}",
        f"images (loop, {fresh.root.parent.parent}/i): it was never made",
        f"www (directory, {fresh.root.parent.parent}/w): it was never made",
    ]
    assert not fresh.root.exists()


def test_a_root_without_space_is_found(scratch: Scratch, tmp_path: Path) -> None:
    small = Patient(Running(tmp_path / "d", config=pools_config(www=("directory", tmp_path / "w"))))
    small.root = small.daemon.root = scratch.make("tmpfs", size_bytes=16 << 20)
    found(small.look("space"), "bad", "the root directory: ")


def test_a_database_of_each_earlier_version_is_read(fresh: Patient) -> None:
    fresh.root.mkdir()
    path = fresh.root / "voldriver.db"
    path.touch()
    assert fresh.look("database").of("ok") == ["it is sound"]
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema.SCHEMA} PRAGMA user_version = 1; COMMIT;")
    assert fresh.look("database").of("ok") == ["it is sound"]
    assert fresh.look("backups").status == 0


# Checks that cannot look


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[scope.Scope], list[Finding]]], None]:
    """Have one check more, before all others."""

    def put(look: Callable[[scope.Scope], list[Finding]]) -> None:
        monkeypatch.setattr(doctor, "CHECKS", (Check("odd", "Odd", "it", look, ()), *doctor.CHECKS))

    return put


def examined() -> list[Finding]:
    looked = scope.Scope(Config(), NOW, api_fault="it does not run")
    return doctor.examine(looked, ["odd", "daemon"])


def test_a_check_that_fails_says_so_and_hinders_no_other(only: Callable[..., None]) -> None:
    def fail(_: scope.Scope) -> list[Finding]:
        raise ValueError("what a surprise")

    only(fail)
    texts = [finding.text for finding in examined()]
    assert texts == ["could not be looked at: ValueError: what a surprise", "no daemon: it does not run"]


def test_a_check_that_hangs_is_given_up_and_told(only: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def hang(_: scope.Scope) -> list[Finding]:
        ended.wait(60)
        return []

    only(hang)
    monkeypatch.setattr(doctor, "LIMIT_S", 1.0)
    levels_of = [(finding.check, finding.level) for finding in examined()]
    ended.set()
    assert levels_of == [("odd", Level.BAD), ("daemon", Level.BAD)]
    until(lambda: all(not thread.name.startswith("doctor-") for thread in threading.enumerate()), "its thread")


def test_nothing_known_is_not_looked_at_and_said() -> None:
    looked = doctor.examine(scope.Scope(Config(), NOW, api_fault="no"), ["links"])
    assert [each.text for each in looked] == ["not looked at: neither a daemon nor its database tells what there is"]


# What is known


def known(*ids: int, trees: dict[str, str] | None = None) -> Known:
    volumes = tuple(KnownVolume(number, f"n{number}", "p", None, is_live=True, created_at=NOW) for number in ids)
    return Known(is_served=trees is None, pools=(), volumes=volumes, targets=(), trees=trees)


@pytest.mark.parametrize(
    ("told", "foreign"),
    [
        (known(3, 7), {"v5.1"}),
        (known(), set()),
        (known(3, 7, trees={"v3.1": "p", "s9": "p"}), {"v5.1", "v8.1", "s2", "odd", "v3.2"}),
    ],
)
def test_only_what_is_certainly_nobodys_is_foreign(told: Known, foreign: set[str]) -> None:
    assert told.foreign({"v3.1", "v3.2", "v5.1", "v8.1", "s2", "s9", "odd"}) - foreign == set()
    assert foreign - told.foreign({"v3.1", "v3.2", "v5.1", "v8.1", "s2", "s9", "odd"}) == set()


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", ".hidden", "a/b", ""])
def test_no_name_leads_out_of_the_directory_of_links(fresh: Patient, name: str) -> None:
    """A daemon tells them; but who knows who answers at a socket that somebody named."""
    volume = KnownVolume(1, name, "p", "v1.1", is_live=True, created_at=datetime(2020, 1, 1, tzinfo=UTC))
    told = Known(is_served=True, pools=(), volumes=(volume,), targets=())
    looked = scope.Scope(Config(root=fresh.root), NOW, known=told)
    assert [each.fix for each in doctor.examine(looked, ["links"])] == [None]


# In use


def test_an_image_that_was_never_made_is_a_note(fresh: Patient) -> None:
    fresh.daemon.config_file.write_text("")
    found(fresh.look("pools"), "note", f"{fresh.root}/embedded.img is not there")


def test_fix_needs_nothing_where_there_is_nothing(fresh: Patient) -> None:
    assert fresh.look("sockets", "--fix").mended == []


def test_errors_that_a_file_system_has_counted_are_found(fresh: Patient, scratch: Scratch) -> None:
    place = scratch.make("ext4", size_bytes=32 << 20)
    (place / "p").mkdir(0o700)
    (place / "p" / ".voldriver-pool").write_text(MARKER)
    fresh.daemon.config_file.write_text(pools_config(p=("directory", place / "p")))
    assert fresh.look("pools").status == 0
    device = Path(
        subprocess.run(["findmnt", "-no", "SOURCE", place], capture_output=True, text=True, check=True).stdout.strip()
    )
    count_ext4_error(device.name)
    found(fresh.look("pools"), "bad", "1 errors are counted")


def test_a_file_system_without_direct_io_is_judged(tmp_path: Path) -> None:
    """None is to be had here: ext4, xfs, btrfs and tmpfs of this kernel have it."""
    assert levels(features.judge_direct(Direct("p", tmp_path, False, True, ()))) == [Level.WARNING]
    assert features.has_direct_io(tmp_path)


def test_images_that_are_copied_on_write_are_found(fresh: Patient, scratch: Scratch) -> None:
    place = scratch.make("btrfs") / "p"
    (place / "trees").mkdir(0o700, parents=True)
    (place / ".voldriver-pool").write_text(MARKER)
    fresh.daemon.config_file.write_text(pools_config(p=("loop", place)))
    found(fresh.look("direct-io"), "warning", "are copied on write")
    subprocess.run(["chattr", "+C", place / "trees"], check=True)
    assert fresh.look("direct-io", "reflinks").status == 0


def test_full_quotas_that_are_not_consistent_are_found(tmp_path: Path) -> None:
    quota = Quota("p", tmp_path, Mode.FULL, Mode.FULL, is_consistent=False)
    assert [finding.remedy for finding in features.judge_quota(quota)] == [f"`btrfs quota rescan {tmp_path}`"]


# Another user


def test_another_user_is_told_what_is_not_looked_at(fresh: Patient) -> None:
    fresh.root.mkdir(0o711)
    diagnosis = fresh.look_from("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", checks=())
    unseen = {each["check"] for each in diagnosis.findings if each["text"] == "not looked at: needs root"}
    assert {"database", "modes", "propagation", "leaked-loops", "leaked-mounts", "capabilities", "pools"} <= unseen
    assert [each["text"].partition(":")[0] for each in diagnosis.findings if each["check"] == "daemon"] == ["no daemon"]
    assert diagnosis.status == 0


def test_another_user_may_not_mend(fresh: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(AssertionError, match="--fix needs root"):
        fresh.look("--fix")
