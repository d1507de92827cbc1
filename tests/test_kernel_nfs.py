from pathlib import Path

import pytest

from voldriverd.kernel import nfs, run

PLACE = Path("/root/targets/1")


def test_a_share_is_mounted_so_that_no_server_keeps_a_thread_for_ever() -> None:
    assert nfs.arguments("server", "/exports/backups", PLACE, None) == [
        "mount.nfs",
        "server:/exports/backups",
        "/root/targets/1",
        "-o",
        "softerr,timeo=100,retrans=3,nosuid,nodev,noexec",
    ]


def test_options_that_are_given_come_last() -> None:
    *_, options = nfs.arguments("[fd00::1]", "/b", PLACE, "vers=4.2,hard")
    assert options.endswith(",noexec,vers=4.2,hard")


def test_a_host_without_a_client_is_told_what_to_install() -> None:
    with pytest.raises(OSError, match=r"this host has no NFS client: mount\.nfs is not installed"):
        nfs.attach("server", "/b", PLACE, None)


def test_the_client_is_run_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[list[str], float]] = []
    monkeypatch.setattr(run, "missing", lambda _tools: [])
    monkeypatch.setattr(run, "run", lambda argv, *, timeout_s: ran.append((argv, timeout_s)))
    nfs.attach("server", "/b", PLACE, "ro")
    assert ran == [(nfs.arguments("server", "/b", PLACE, "ro"), nfs.TIMEOUT_S)]


def test_what_is_not_mounted_need_not_be_unmounted(tmp_path: Path) -> None:
    nfs.detach(tmp_path)
    nfs.detach(tmp_path / "absent")
