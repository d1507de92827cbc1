"""What ails mounted volumes, in memory: `health` finds it, the API shows it."""

from collections.abc import Callable, Mapping

from voldriverd import model


class Ailments:
    """The volumes that ail; one thread puts, any may ask."""

    def __init__(self) -> None:
        """Know of none."""
        self._known: Mapping[model.VolumeId, tuple[model.Ailment, ...]] = {}
        self._listeners: list[Callable[[model.VolumeId], None]] = []

    def of(self, volume_id: model.VolumeId) -> tuple[model.Ailment, ...]:
        """Return what ails a volume; nothing if it is not mounted."""
        return self._known.get(volume_id, ())

    def all(self) -> Mapping[model.VolumeId, tuple[model.Ailment, ...]]:
        """Return the volumes that ail, each with what does."""
        return self._known

    def watch(self, listener: Callable[[model.VolumeId], None]) -> None:
        """Have a function called with each volume whose kinds of trouble are others than before; it does not raise."""
        self._listeners.append(listener)

    def put(self, found: Mapping[model.VolumeId, tuple[model.Ailment, ...]]) -> list[model.VolumeId]:
        """Keep the volumes that ail now, all of them, and tell of those that have changed; return these."""
        before, self._known = self._known, found
        turned = [
            volume_id
            for volume_id in sorted({*before, *found})
            if _troubles(before.get(volume_id, ())) != _troubles(found.get(volume_id, ()))
        ]
        for volume_id in turned:
            for listener in self._listeners:
                listener(volume_id)
        return turned


def _troubles(ailments: tuple[model.Ailment, ...]) -> set[model.Trouble]:
    return {ailment.trouble for ailment in ailments}
