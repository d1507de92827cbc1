"""A pytest plugin (`-p tests.lanes -n 2`): the tests in two processes at once, file by file, and some of them alone.

Most tests wait for a disk, a process or a clock, so that two lanes take little more than half of the time. Each lane
has temporary directories of its own, and the check that nothing is left behind looks at those of its own lane alone.
What asserts how long something takes runs last, in one lane while the other has ended.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

FIRST: Final = (
    "tests/docker/",
    "tests/test_openapi.py",
    "tests/contract/test_crash.py",
    "tests/contract/test_streams.py",
    "tests/contract/test_power.py",
    "tests/test_power.py",
    "tests/test_outages.py",
    "tests/test_plugin_protocol.py",
    "tests/test_backup_damage.py",
    "tests/test_managed_plugin.py",
)
"""The longest, so that no lane begins one of them when the other is about to end. A directory is one piece of work: it
has a fixture that all its files share."""
ALONE: Final = {
    "tests/test_auth_tcp.py::test_a_right_key_passes_at_once_where_others_fail": "a right key never waits: 3 s",
    "tests/test_auth_tcp.py::test_a_sixth_failure_is_answered_later": "and the fifth at once: 0.4 s",
    "tests/test_latency.py::test_get_is_answered_within_50_ms_while_a_snapshot_writes_out_300_mib": "50 ms",
}
"""The tests that promise how soon something is done, and what they promise; the others wait for much longer."""
_ALONE: Final = "alone"
_CLONE_NEWNS: Final = 0x20000
_MS_REC: Final = 1 << 14
_MS_PRIVATE: Final = 1 << 18
_MS_SHARED: Final = 1 << 20
"""linux/sched.h, linux/mount.h"""
_libc = ctypes.CDLL(None, use_errno=True)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives a lane that is nearly done the next file; what runs alone, to the last lane that is left."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a lane that has ended; another one may have waited for it."""
        crashed: str | None = super().remove_node(node)
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)

    def _reschedule(self, node: WorkerController) -> None:
        if _ALONE in self.workqueue and len(self.workqueue) == 1 and len(self.nodes) > 1:
            if node is not self.nodes[0]:
                node.shutdown()
            return
        super()._reschedule(node)


def piece(nodeid: str) -> str:
    """Return the piece of work that a test belongs to."""
    if nodeid.partition("[")[0] in ALONE:
        return _ALONE
    file = nodeid.partition("::")[0]
    return next((each for each in FIRST if file.startswith(each)), file)


def pytest_configure(config: pytest.Config) -> None:
    """Give a lane a mount namespace of its own: who has a copy of its mounts keeps none of the other lane's busy."""
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        _unshare_mounts()


def _unshare_mounts() -> None:
    root = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == "/")
    flags = [_MS_PRIVATE, *([_MS_SHARED] if " shared:" in root else [])]  # then as it was, but among ourselves
    done = [_libc.unshare(_CLONE_NEWNS), *(_libc.mount(None, b"/", None, _MS_REC | flag, None) for flag in flags)]
    if any(done):
        raise OSError(ctypes.get_errno(), "cannot make a mount namespace")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the pieces as they shall be begun; within a piece nothing changes its place."""
    order = (*FIRST, "", _ALONE)
    places = {item: piece(item.nodeid) for item in items}
    items.sort(key=lambda item: order.index(places[item]) if places[item] in order else order.index(""))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Give the files to the lanes in the order of their collection."""
    config.option.loadscopereorder = False
    return Lanes(config, log)
