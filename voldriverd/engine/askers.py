"""Processes that asked for a mount: while one lives, it may use the volume without a mount of its own.

dockerd copies an image's content into a new volume through our mount point. No mount table shows
that, and for some gigabytes it takes longer than a holder may go unseen. Kept in memory only: after
a restart of the daemon the kernel's tables alone are asked.

A holder may be mounted by two processes: a container that outlives its dockerd keeps its id, and
the next dockerd mounts and unmounts under the same. So each mount is noted, and taken off by the
process that made it; what a dead one left then keeps nobody.
"""

from voldriverd import model
from voldriverd.kernel import process


class Askers:
    """Who asked for which mount; for one thread."""

    def __init__(self) -> None:
        """Know nobody."""
        self._known: dict[model.VolumeId, dict[str, list[tuple[int, int]]]] = {}

    def note(self, volume_id: model.VolumeId, holder: str, pid: int) -> None:
        """Remember that a process mounted a volume for a holder once."""
        started = process.started(pid)
        if started is not None:
            self._known.setdefault(volume_id, {}).setdefault(holder, []).append((pid, started))

    def drop(self, volume_id: model.VolumeId, holder: str, pid: int | None) -> None:
        """Forget one mount of a process for a holder, the last one if it is not known which process lets go."""
        asked = self._known.get(volume_id, {}).get(holder, [])
        own = [each for each in asked if pid in {None, each[0]}]
        if own:
            asked.remove(own[-1])

    def forget(self, volume_id: model.VolumeId, holder: str) -> None:
        """Forget a holder that has let go for good."""
        known = self._known.get(volume_id, {})
        known.pop(holder, None)
        if not known:
            self._known.pop(volume_id, None)

    def is_any_alive(self, volume_id: model.VolumeId) -> bool:
        """Tell whether a process lives that has mounted the volume more often than unmounted."""
        for holder, asked in list(self._known.get(volume_id, {}).items()):
            if any(process.started(pid) == started for pid, started in asked):
                return True
            self.forget(volume_id, holder)
        return False
