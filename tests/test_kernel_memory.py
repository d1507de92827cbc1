from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.running import Running
from voldriverd.kernel import memory

HEAP_BYTES: Final = 64 << 20
"""How much of the address space glibc reserves for each arena but the main one, and on what it is aligned."""

NAMELESS: Final = 5
"""Fields of a mapping of no file."""


def arenas(pid: int) -> int:
    """Count the arenas of a process, the main one included (proc_pid_maps(5))."""
    mapped = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    nameless = [fields[0].split("-") for fields in mapped if len(fields) == NAMELESS]
    ends = {int(start, 16): int(end, 16) for start, end in nameless}
    return 1 + sum(1 for start in ends if start % HEAP_BYTES == 0 and ends.get(ends[start]) == start + HEAP_BYTES)


@pytest.mark.root
def test_the_threads_of_a_daemon_allocate_from_few_places(tmp_path: Path) -> None:
    with Running(tmp_path / "d") as daemon, ThreadPoolExecutor(16) as clients:
        made = clients.map(lambda number: daemon.plugin("VolumeDriver.Create", Name=f"v{number}"), range(64))
        assert {answer.body["Err"] for answer in made} == {""}
        assert arenas(daemon.pid) == memory.ARENAS
