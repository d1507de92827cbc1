"""Processes that asked for a mount: while one lives, it may use the volume without a mount of its own.

dockerd copies an image's content into a new volume through our mount point. No mount table shows
that, and for some gigabytes it takes longer than a holder may go unseen. Kept in memory only: after
a restart of the daemon the kernel's tables alone are asked.
"""

from voldriverd import model
from voldriverd.kernel import process


class Askers:
    """Who asked for which mount; for one thread."""

    def __init__(self) -> None:
        """Know nobody."""
        self._known: dict[model.VolumeId, dict[str, tuple[int, int]]] = {}

    def note(self, volume_id: model.VolumeId, holder: str, pid: int) -> None:
        """Remember which process mounted a volume for a holder."""
        started = process.started(pid)
        if started is not None:
            self._known.setdefault(volume_id, {})[holder] = (pid, started)

    def drop(self, volume_id: model.VolumeId, holder: str) -> None:
        """Forget a holder that let go."""
        known = self._known.get(volume_id, {})
        known.pop(holder, None)
        if not known:
            self._known.pop(volume_id, None)

    def is_any_alive(self, volume_id: model.VolumeId) -> bool:
        """Tell whether a process lives that asked for a mount which its holder has not let go."""
        for holder, (pid, started) in list(self._known.get(volume_id, {}).items()):
            if process.started(pid) == started:
                return True
            self.drop(volume_id, holder)
        return False
