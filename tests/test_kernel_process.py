"""Processes: which container one is in, and a name that outlives its pid."""

import os
import subprocess

import pytest

from voldriverd.kernel import process

ID = "0123456789abcdef" * 4
INNER = "fedcba9876543210" * 4


@pytest.mark.parametrize(
    "line",
    [
        f"12:pids:/docker/{ID}",
        f"0::/system.slice/docker-{ID}.scope",
        f"0::/machine.slice/libpod-{ID}.scope/container",
        f"1:name=systemd:/libpod_parent/libpod-{ID}",
        f"0::/kubepods.slice/kubepods-pod12.slice/cri-containerd-{ID}.scope",
        f"0::/docker/{INNER}/docker/{ID}",
    ],
)
def test_the_innermost_container_of_a_control_group_is_told(line: str) -> None:
    assert process.container_in(f"9:cpu:/\n{line}\n") == ID


@pytest.mark.parametrize(
    "line", ["0::/", "0::/user.slice/session-1.scope", f"0::/x{ID}", f"0::/{ID}0", f"0::/{ID[1:]}"]
)
def test_a_process_of_the_host_is_in_no_container(line: str) -> None:
    assert process.container_in(line) is None


def test_a_process_beside_us_is_shown_by_its_name_and_pid() -> None:
    assert process.shown(os.getpid(), "python") == f"python (pid {os.getpid()})"


def test_a_process_that_has_gone_is_in_no_container_and_has_no_start() -> None:
    with subprocess.Popen(["true"]) as done:
        done.wait()
    assert (process.container_of(done.pid), process.started(done.pid)) == (None, None)


@pytest.mark.root
def test_the_start_of_a_process_is_told_whatever_its_name() -> None:
    with subprocess.Popen(
        ["sh", "-c", "printf 'a) R 1 (b' >/proc/$$/comm; echo; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        own, other = process.started(os.getpid()), process.started(odd.pid)
        odd.kill()
    assert own is not None
    assert other is not None
    assert own <= other
