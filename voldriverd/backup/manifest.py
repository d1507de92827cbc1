"""What a manifest says: where a backup comes from and what its body is. Checked when read: it is foreign input."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from voldriverd.driver import StreamFormat, TreeOptions
from voldriverd.kernel import tree

FORMAT_VERSION: Final = 1
LISTS_MAX: Final = 8192
"""Of chunks of lists: at 4 MiB each they tell of some 500 TiB."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME: Final = re.compile(r"[0-9a-f]{64}")
_TEXT_MAX: Final = 65536
"""Characters in one text: descriptions are the longest."""
_COUNT_MAX: Final = 1024
"""Options, labels and notes."""
NOTES_MAX: Final = 256
_BYTES_MAX: Final = (1 << 63) - 1


class Malformed(Exception):
    """A text that is no manifest of version 1; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class VolumeCard:
    """The volume as it was when it was backed up."""

    uuid: str
    name: str
    driver: str
    description: str | None
    options: Mapping[str, str]
    """As the user gave them."""
    labels: Mapping[str, str]
    size_bytes: int | None
    """None if it had no limit."""


@dataclass(frozen=True, slots=True)
class SnapshotCard:
    """The snapshot that was backed up."""

    uuid: str
    name: str | None
    description: str | None


@dataclass(frozen=True, slots=True)
class Body:
    """What was sent, and where it is."""

    format: StreamFormat
    version: int
    """Of the format: 1 or 2 of BTRFS; else 1."""
    image_bytes: int | None
    """The size of the image that BLOCKS are of; else None."""
    content_bytes: int
    """The length of the body."""
    stored_bytes: int
    """What was added to the target for it, but for the manifest."""
    notes: tuple[str, ...]
    """What the stream could not hold, for people."""
    lists: tuple[tuple[str, int], ...]
    """(name, length) of the chunks that hold the lists."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup. What has no body yet is a draft: what is known before anything is sent."""

    uuid: str
    created_at: datetime
    taken_at: datetime
    """When the snapshot was made."""
    host: str
    volume: VolumeCard
    tree: TreeOptions
    """What the tree was made with; `fs`, `thick`, `nocow` and `compression` are kept."""
    snapshot: SnapshotCard
    name: str | None
    description: str | None
    parent: str | None = None
    """The backup that it is an increment on; None for a whole one."""
    depth: int = 0
    """How many backups it builds on: 0 for a whole one."""
    is_removed: bool = False
    """It is kept only because others build on it."""
    body: Body | None = None

    @property
    def sent(self) -> Body:
        """The body of one that is no draft."""
        assert self.body is not None, f"backup {self.uuid} is a draft"
        return self.body

    @property
    def format(self) -> StreamFormat:
        """The format of the body."""
        return self.sent.format

    @property
    def stream_version(self) -> int:
        """The version of that format."""
        return self.sent.version

    @property
    def content_bytes(self) -> int:
        """The length of the body."""
        return self.sent.content_bytes

    @property
    def stored_bytes(self) -> int:
        """What was added to the target for it."""
        return self.sent.stored_bytes

    @property
    def image_bytes(self) -> int | None:
        """The size of the image that BLOCKS are of; else None."""
        return self.sent.image_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the stream could not hold, for people."""
        return self.sent.notes


def is_uuid(text: str) -> bool:
    """Tell whether a text may stand in an object's name for a volume or backup."""
    return _UUID.fullmatch(text) is not None


def is_chunk_name(text: str) -> bool:
    """Tell whether a text may be a chunk's name."""
    return _NAME.fullmatch(text) is not None


def to_json(manifest: Manifest) -> bytes:
    """Write a manifest that is no draft."""
    fields = dataclasses.asdict(manifest)
    tree, body = fields["tree"], fields["body"]
    fields["created_at"], fields["taken_at"] = manifest.created_at.isoformat(), manifest.taken_at.isoformat()
    fields["tree"] = {name: tree[name] for name in ("fs", "thick", "nocow", "compression")}
    fields["removed"] = fields.pop("is_removed")
    body["format"] = manifest.format.value
    return json.dumps({"format": FORMAT_VERSION} | fields).encode("ascii")


def from_json(content: bytes) -> Manifest:
    """Read what `to_json` wrote, unknown fields left out. Raises Malformed."""
    try:
        fields = _Fields(json.loads(content), "manifest")
    except (ValueError, RecursionError) as err:
        raise Malformed("it is no JSON") from err
    version = fields.count("format")
    if version != FORMAT_VERSION:
        raise Malformed(f"it has format {version}, and this version knows {FORMAT_VERSION}")
    parent, depth = fields.uuid_or_none("parent"), fields.count("depth")
    if (parent is None) != (depth == 0):
        raise Malformed("its parent and its depth contradict each other")
    return Manifest(
        uuid=fields.uuid("uuid"),
        created_at=fields.time("created_at"),
        taken_at=fields.time("taken_at"),
        host=fields.text("host"),
        volume=_volume(fields.part("volume")),
        tree=_tree(fields.part("tree")),
        snapshot=_snapshot(fields.part("snapshot")),
        name=fields.text_or_none("name"),
        description=fields.text_or_none("description"),
        parent=parent,
        depth=depth,
        is_removed=fields.truth("removed"),
        body=_body(fields.part("body")),
    )


def _volume(fields: "_Fields") -> VolumeCard:
    return VolumeCard(
        uuid=fields.uuid("uuid"),
        name=fields.text("name"),
        driver=fields.text("driver"),
        description=fields.text_or_none("description"),
        options=fields.texts_by_name("options"),
        labels=fields.texts_by_name("labels"),
        size_bytes=fields.count_or_none("size_bytes"),
    )


def _tree(fields: "_Fields") -> TreeOptions:
    return TreeOptions(
        fs=fields.text_or_none("fs"),
        thick=fields.truth("thick"),
        nocow=fields.truth("nocow"),
        compression=fields.text_or_none("compression"),
    )


def _snapshot(fields: "_Fields") -> SnapshotCard:
    return SnapshotCard(fields.uuid("uuid"), fields.text_or_none("name"), fields.text_or_none("description"))


def _body(fields: "_Fields") -> Body:
    word = fields.text("format")
    if word not in set(StreamFormat):
        raise Malformed(f"its body has the unknown format {word[:40]!r}")
    image_bytes = fields.count_or_none("image_bytes")
    if (image_bytes is None) == (word == StreamFormat.BLOCKS):
        raise Malformed("its format and image_bytes contradict each other")
    return Body(
        format=StreamFormat(word),
        version=fields.count("version"),
        image_bytes=image_bytes,
        content_bytes=fields.count("content_bytes"),
        stored_bytes=fields.count("stored_bytes"),
        notes=fields.texts("notes"),
        lists=tuple(_chunk(row) for row in fields.rows("lists", LISTS_MAX)),
    )


def _chunk(row: object) -> tuple[str, int]:
    match row:
        case [str(name), int(length)] if is_chunk_name(name) and length > 0 and not isinstance(length, bool):
            return name, length
    raise Malformed("its lists name something that is no chunk")


class _Fields:
    """One JSON object, each field taken out as what it must be. All methods raise Malformed."""

    def __init__(self, found: object, what: str) -> None:
        if not isinstance(found, dict):
            raise Malformed(f"its {what} is no JSON object")
        self._found: dict[str, Any] = found

    def part(self, name: str) -> "_Fields":
        return _Fields(self._take(name), name)

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value) > _TEXT_MAX:
            raise Malformed(f"its {name} is no text, or too long")
        return tree.legible(value)

    def text_or_none(self, name: str) -> str | None:
        return None if self._take(name) is None else self.text(name)

    def uuid(self, name: str) -> str:
        value = self.text(name)
        if not is_uuid(value):
            raise Malformed(f"its {name} is no UUID")
        return value

    def uuid_or_none(self, name: str) -> str | None:
        return None if self._take(name) is None else self.uuid(name)

    def time(self, name: str) -> datetime:
        try:
            return datetime.fromisoformat(self.text(name)).astimezone(UTC)
        except (ValueError, OverflowError) as err:
            raise Malformed(f"its {name} is no time") from err

    def count(self, name: str) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _BYTES_MAX:
            raise Malformed(f"its {name} is no number that may stand there")
        return value

    def count_or_none(self, name: str) -> int | None:
        return None if self._take(name) is None else self.count(name)

    def truth(self, name: str) -> bool:
        value = self._take(name)
        if not isinstance(value, bool):
            raise Malformed(f"its {name} is neither true nor false")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        rows = self.rows(name, _COUNT_MAX)
        if not all(isinstance(row, str) and len(row) <= _TEXT_MAX for row in rows):
            raise Malformed(f"its {name} are no texts")
        return tuple(map(tree.legible, rows))

    def texts_by_name(self, name: str) -> dict[str, str]:
        found = self._take(name)
        if not isinstance(found, dict) or len(found) > _COUNT_MAX:
            raise Malformed(f"its {name} are no names with texts")
        fields = _Fields(found, name)
        return {key: fields.text(key) for key in found}

    def rows(self, name: str, most: int) -> list[Any]:
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            raise Malformed(f"its {name} are no list, or too long")
        return value

    def _take(self, name: str) -> Any:
        if name not in self._found:
            raise Malformed(f"it has no {name}")
        return self._found[name]
