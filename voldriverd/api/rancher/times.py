"""Times on the wire: UTC in whole seconds, and beside each one `…TS` in milliseconds (rancher-api 1.6)."""

import functools
from datetime import UTC, datetime, timedelta
from typing import Final

_MS: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def shown(**times: datetime | None) -> dict[str, object]:
    """Return the fields of some times, those in milliseconds only of times that are there."""
    fields: dict[str, object] = {}
    for name, time in times.items():
        if time is None:
            fields[name] = None
            continue
        fields[name], fields[f"{name}TS"] = _written(time)
    return fields


@functools.lru_cache(maxsize=4_096)
def _written(time: datetime) -> tuple[str, int]:
    return f"{time.isoformat()[:19]}Z", int(time.timestamp()) * _MS


def parse(value: object) -> datetime | None:
    """Read an ISO date (UTC if it has no zone) or milliseconds since the epoch; None if it is neither."""
    try:
        if isinstance(value, str) and not value.strip().lstrip("-").isdecimal():
            time = datetime.fromisoformat(value)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return _EPOCH + timedelta(milliseconds=int(value))
    except (ValueError, OverflowError):
        return None
    return None
