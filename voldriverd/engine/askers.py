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

Process = tuple[int, int]
"""Its pid, and when it started."""


class Askers:
    """Who asked for which mount; for one thread."""

    def __init__(self) -> None:
        """Know nobody."""
        self._known: dict[model.VolumeId, dict[str, list[Process]]] = {}

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

    def processes(self) -> set[Process]:
        """Return everybody who is known, for `living`."""
        return {asker for holders in self._known.values() for askers in holders.values() for asker in askers}

    def users(self, asked: set[Process], alive: set[Process]) -> set[model.VolumeId]:
        """Return the volumes that a living process mounted more often than it unmounted; forget the dead.

        Of those who were `asked` for, `alive` are; who came since then lives.
        """
        dead = asked - alive
        for volume_id, holders in list(self._known.items()):
            for holder, askers in list(holders.items()):
                if dead.issuperset(askers):
                    self.forget(volume_id, holder)
        return set(self._known)


def living(processes: set[Process]) -> set[Process]:
    """Return those that live; some 30 µs each."""
    return {each for each in processes if process.started(each[0]) == each[1]}
