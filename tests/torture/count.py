"""What a daemon holds: memory, descriptors, threads, loop devices and mounts."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.running import Running
from tests.scratch import loops_under
from voldriverd.kernel import mount


@dataclass(frozen=True, slots=True)
class Held:
    """What was counted at one instant; the memory is no part of the comparison."""

    descriptors: int
    threads: int
    loops: int
    mounts: int


def held(daemon: Running, pools: list[Path]) -> Held:
    """Count what a daemon holds whose pools lie under some directories."""
    inside = [entry for entry in mount.table() if entry.mount_point.startswith(f"{daemon.root}/")]
    return Held(
        descriptors=len(os.listdir(f"/proc/{daemon.pid}/fd")),
        threads=len(os.listdir(f"/proc/{daemon.pid}/task")),
        loops=sum(len(loops_under(place)) for place in pools),
        mounts=len(inside),
    )


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process (VmRSS of proc_pid_status(5))."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10
