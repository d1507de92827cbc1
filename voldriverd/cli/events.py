"""`voldriver events`: what happens, one line each, until Ctrl-C.

A connection that is lost is made again, and goes on where it ended: the daemon may restart meanwhile.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import click

from voldriverd.cli import show
from voldriverd.cli.connection import Connection, Resource
from voldriverd.cli.session import Session
from voldriverd.errors import Unusable

RETRY_S: Final = 60.0
"""How long a daemon that was there may be away: two of its starts."""
_PAUSE_S: Final = 0.5
_WIDTHS: Final = {"resourceType": 11, "state": 17, "cause": 9}
"""The longest words that there are, so that the columns of a line that nobody knows yet will fit."""


@dataclass(slots=True)
class _Message:
    """One server-sent event (HTML standard, 9.2.6)."""

    name: str = "message"
    id: str | None = None
    data: str | None = None


@click.command("events")
@click.pass_obj
def group(session: Session) -> None:
    """Show what happens to volumes, snapshots, mounts and pools, until Ctrl-C.

    With --json there is one object a line.
    """
    try:
        for message in _messages(session.connection):
            _tell(message, is_json=session.is_json)
    except KeyboardInterrupt:
        return


def _messages(connection: Connection) -> Iterator[_Message]:
    """Yield all messages with data, over as many connections as it takes. Raises Unusable at the first that fails."""
    last_id, lost_s = "", 0.0
    while True:
        cause = "the daemon has stopped"
        try:
            with connection.stream("events", headers={"Last-Event-ID": last_id} if last_id else {}) as answer:
                for message in _parse(answer.lines()):
                    last_id, lost_s = message.id or last_id, 0.0
                    if message.data is not None:
                        yield message
        except Unusable as err:
            if not last_id or (lost_s and time.monotonic() - lost_s > RETRY_S):
                raise
            cause = str(err)
        if not last_id:
            raise Unusable("cannot understand its answer: it is no stream of events; is it voldriverd?")
        if not lost_s:
            lost_s = time.monotonic()
            show.note(f"voldriver: no events come, trying again: {cause}")
        time.sleep(_PAUSE_S)


def _parse(lines: Iterable[bytes]) -> Iterator[_Message]:
    message = _Message()
    for line in lines:
        name, _, value = line.decode().partition(": ")
        if name == "event":
            message.name = value
        elif name == "id":
            message.id = value
        elif name == "data":
            message.data = value
        elif not line:
            yield message
            message = _Message()


def _tell(message: _Message, *, is_json: bool) -> None:
    event = json.loads(message.data or "{}", object_hook=Resource)
    if message.name != "message":
        show.note(f"voldriver: {event['message']}")
    elif is_json:
        click.echo(message.data)
    else:
        click.echo(show.plain(_line(event)))


def _line(event: Resource) -> str:
    """Write an event for people; a mount is known by its volume and holder."""
    columns = [str(event[name]).ljust(width) for name, width in _WIDTHS.items()]
    name = event["name"] or event["resourceId"]
    if event["resourceType"] == "snapshot":
        name = f"{event['volumeName'] or event['volumeId']}@{name}"
    if event["resourceType"] == "mount":
        name = f"{event['volumeName'] or event['volumeId']} by {event['holder']}"
    if event.get("message"):  # a daemon of before has none
        name = f"{name}: {event['message']}"
    return f"{show.time(event['time'])}  {'  '.join(columns)}  {name}"
