"""Does what `--fix` may do; each looks once more, right before, whether it is still right to do it.

While no daemon runs the root is held as a daemon holds it, so that none starts in the middle.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from voldriverd.doctor import loops, sockets
from voldriverd.doctor.finding import Act, Finding, Fix
from voldriverd.errors import InUse
from voldriverd.kernel import fs, loop, mount


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold a root that no daemon holds, for the block; one that is not there needs not be held. Raises InUse."""
    if not root.is_dir():
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(fs.locked(root / "lock"))
        except BlockingIOError as err:
            raise InUse(f"cannot mend anything in {root}: a daemon has started meanwhile; try again") from err
        yield


def mend(findings: list[Finding]) -> Iterator[tuple[Fix, str]]:
    """Do what can be done about findings; yields each fix with what became of it."""
    for finding in findings:
        if finding.fix is None:
            continue
        try:
            result = _ACTS[finding.fix.act](finding.fix)
        except OSError as err:
            result = f"{finding.fix.act} {finding.fix.path}: {(err.strerror or str(err)).lower()}; left as it is"
        yield finding.fix, result


def _remove_socket(fix: Fix) -> str:
    if sockets.state_of(Path(fix.path)) is not sockets.State.DEAD:
        return f"{fix.path} is not dead any more; left as it is"
    os.unlink(fix.path)
    return f"removed the dead socket {fix.path}"


def _clear_loop(fix: Fix) -> str:
    number = int(fix.value)
    if loops.is_mounted(number, loops.all_mounts()):
        return f"/dev/loop{number} is mounted now; left as it is"
    if not loop.clear(number, Path(fix.path)):
        return f"/dev/loop{number} is not of {fix.path} any more; left as it is"
    return f"cleared /dev/loop{number} of {fix.path}"


def _unmount(fix: Fix) -> str:
    path = Path(fix.path)
    entry = mount.at(path)
    if entry is None:
        return f"{path} is not mounted any more"
    if mount.elsewhere(entry.device, entry.root, own=path):
        return f"{path} is used now; left as it is"
    mount.unmount(path)
    return f"unmounted {path}"


def _link(fix: Fix) -> str:
    path = Path(fix.path)
    part = path.with_name(f".doctor-{os.getpid()}")
    part.symlink_to(fix.value)
    try:
        part.rename(path)
    except OSError:
        part.unlink()
        raise
    return f"made the link {path} to {fix.value}"


def _unlink(fix: Fix) -> str:
    if not os.path.islink(fix.path):
        return f"{fix.path} is no link any more; left as it is"
    os.unlink(fix.path)
    return f"removed the link {fix.path}"


def _mode(fix: Fix) -> str:
    os.chmod(fix.path, int(fix.value, 8))
    return f"set the mode of {fix.path} to {fix.value}"


def _group(fix: Fix) -> str:
    os.chown(fix.path, -1, int(fix.value))
    return f"set the group of {fix.path} to {fix.value}"


_ACTS: Final[Mapping[Act, Callable[[Fix], str]]] = {
    Act.REMOVE_SOCKET: _remove_socket,
    Act.CLEAR_LOOP: _clear_loop,
    Act.UNMOUNT: _unmount,
    Act.LINK: _link,
    Act.UNLINK: _unlink,
    Act.MODE: _mode,
    Act.GROUP: _group,
}
