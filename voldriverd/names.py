"""What users may type: names, sizes, durations, places and volume options, parsed once into types that cannot be wrong.

Nothing here raises anything but Invalid, for any text; its `field` is the option or argument at fault.
A text that is shown back is quoted and cut, so that an error stays one line.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Protocol, TypeVar

from voldriverd.errors import Invalid

DRIVERS: Final = ("btrfs", "directory", "loop")
FILE_SYSTEMS: Final = ("ext4", "xfs")
COMPRESSIONS: Final = ("zstd", "zlib", "lzo")
OPTIONS: Final = (
    *("driver", "pool", "size", "thick", "fs", "from", "uid", "gid", "mode"),
    *("nocow", "compression", "protected", "label.<key>"),
)

NAME_MAX: Final = 255
"""What a directory entry holds (limits.h NAME_MAX), so that `by-name/<volume>` always works."""
SIZE_MAX_BYTES: Final = 2**63 - 1
"""What SQLite and off_t hold."""
DURATION_MAX_S: Final = 36_525 * 86_400
"""A hundred years: a date that far ahead is still a date."""
ID_MAX: Final = 2**32 - 2
"""The largest uid or gid; 2**32 - 1 means "leave it" to chown(2)."""
MODE_MAX: Final = 0o7777
LABELS_MAX: Final = 100
LABEL_VALUE_MAX: Final = 4_096
"""Labels are kept in memory for every volume; these bounds are far above what anybody was seen to use."""

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_NAME_RULE: Final = f'a name is 1 to {NAME_MAX} letters, digits, "_", "." and "-", beginning with a letter or digit'
_ANONYMOUS: Final = re.compile(r"[0-9a-f]{64}")
_SIZE: Final = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))? ?(?:([kmgtp])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)
_SIZE_RULE: Final = "a size is a number with k, m, g, t or p (powers of 1024), as in 10G, 512MiB or 1.5t"
_DURATION: Final = re.compile(
    r"(?=.)(?:([0-9]{1,12})w)?(?:([0-9]{1,12})d)?(?:([0-9]{1,12})h)?(?:([0-9]{1,12})m)?(?:([0-9]{1,12})s)?",
    re.ASCII | re.IGNORECASE,
)
_DURATION_RULE: Final = "a duration is numbers with w, d, h, m or s, the larger first, as in 7d, 90m or 1d12h, or 0"
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%")
_FRACTION: Final = re.compile(r"1(?:\.0{1,4})?|0(?:\.[0-9]{1,4})?")
_UNITS: Final = "kmgtp"
_SECONDS: Final = (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_YES: Final = {"yes", "true", "on", "1"}
_NO: Final = {"no", "false", "off", "0"}
_LABEL: Final = "label."
_SHOWN_MAX: Final = 60
_INTEGER_MAX: Final = 2**64
_BACKUP: Final = "backup:"
_S3_URL: Final = re.compile(
    r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?=.{0,512}\Z)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9!_.*'()-]+)*/?"
)
_NFS_SERVER: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_NFS: Final = "nfs://"
_URL_RULE: Final = "a target is s3://bucket/prefix, file:///directory or nfs://server/share"
_S3: Final = "s3://"
_S3_RULE: Final = (
    "a bucket is 3 to 63 lower case letters, digits, dots and hyphens, and a prefix up to 512 letters, digits, / and "
    "!_.*'()-, without empty parts, . and .., as in s3://bucket/prefix"
)
_ENDPOINT: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,255}/?")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")
_MOUNT_OPTIONS: Final = re.compile(r"(?=.{1,1024}\Z)[A-Za-z0-9_.:/=+@-]+(?:,[A-Za-z0-9_.:/=+@-]+)*")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Parser(Protocol[T_co]):
    """Turns a text into a value; Invalid names `field`."""

    def __call__(self, text: str, *, field: str) -> T_co:
        """Parse. Raises Invalid."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A volume as it is now, or one of its snapshots, to clone from."""

    volume: str
    snapshot: str | None = None
    """None: the volume as it is now."""

    def __str__(self) -> str:
        return self.volume if self.snapshot is None else f"{self.volume}@{self.snapshot}"


@dataclass(frozen=True, slots=True)
class BackupSource:
    """A backup to restore from, by its API id."""

    id: str

    def __str__(self) -> str:
        return f"{_BACKUP}{self.id}"


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """What was asked of a new volume; None means not given, which is not the same as the default."""

    driver: str | None = None
    pool: str | None = None
    size_bytes: int | None = None
    thick: bool | None = None
    fs: str | None = None
    source: Source | BackupSource | None = None
    """The option `from`."""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    nocow: bool | None = None
    compression: str | None = None
    protected: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def volume_name(text: str, *, field: str = "name") -> str:
    """Check the name of a volume. Raises Invalid."""
    return name(text, thing="volume", field=field)


def snapshot_name(text: str, *, field: str = "name") -> str:
    """Check the name of a snapshot. Raises Invalid."""
    return name(text, thing="snapshot", field=field)


def name(text: str, *, thing: str, field: str = "name") -> str:
    """Check a name by the one rule that holds for all things that have names. Raises Invalid."""
    _check_name(text, text, thing=thing, field=field)
    return text


def is_anonymous(name: str) -> bool:
    """Tell whether dockerd made this name up (64 hex digits)."""
    return _ANONYMOUS.fullmatch(name) is not None


def size(text: str, *, field: str = "size") -> int:
    """Parse a size into bytes; a fraction of a byte is dropped. Raises Invalid."""
    found = _SIZE.fullmatch(text)
    if found is None:
        refuse(field, text, _SIZE_RULE)
    whole, decimals, unit = found.groups()
    if decimals and not unit:
        refuse(field, text, f"there is no part of a byte; {_SIZE_RULE}")
    factor: int = 1024 ** (_UNITS.index(unit.lower()) + 1) if unit else 1
    value = int(whole) * factor
    if decimals:
        value += int(decimals) * factor // 10 ** len(decimals)
    if value > SIZE_MAX_BYTES:
        refuse(field, text, f"the largest size is {SIZE_MAX_BYTES} bytes")
    return value


def duration(text: str, *, field: str = "duration") -> int:
    """Parse a duration into seconds. Raises Invalid."""
    if text == "0":
        return 0
    found = _DURATION.fullmatch(text)
    if found is None:
        refuse(field, text, _DURATION_RULE)
    value = sum(int(count or 0) * seconds for count, (_, seconds) in zip(found.groups(), _SECONDS, strict=True))
    if value > DURATION_MAX_S:
        refuse(field, text, "the longest duration is 36525d")
    return value


def percent(text: str, *, field: str = "percent") -> float:
    """Parse `5%` into the fraction 0.05, 0 to 1. Raises Invalid."""
    found = _PERCENT.fullmatch(text)
    fraction = float(found[1]) / 100 if found else -1.0
    if not 0.0 <= fraction <= 1.0:
        refuse(field, text, "a share is 0% to 100%, as in 5% or 2.5%")
    return fraction


def share(text: str, *, field: str) -> float:
    """Parse `5%` as `percent` does, or the fraction itself, as programs write it: `0.05`. Raises Invalid."""
    if _FRACTION.fullmatch(text) is None:
        return percent(text, field=field)
    return float(text)


def format_size(size_bytes: int) -> str:
    """Write a size for people, to a tenth of its unit: `1.5 GiB`; `size` reads it."""
    value, unit = float(size_bytes), "B"
    for letter in _UNITS:
        if round(value, 1) < 1024:
            break
        value, unit = value / 1024, f"{letter.upper()}iB"
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def exact_size(size_bytes: int) -> str:
    """Write a size as an option, without loss: `10G`, `1536M`, `1000`."""
    letter = ""
    for unit in _UNITS:
        if size_bytes == 0 or size_bytes % 1024:
            break
        size_bytes, letter = size_bytes // 1024, unit.upper()
    return f"{size_bytes}{letter}"


def format_duration(duration_s: int) -> str:
    """Write a duration for people, without loss: `7d`, `1d12h`, `0s`; `duration` reads it."""
    parts = []
    for unit, seconds in _SECONDS[1:]:  # days, not weeks: 10d reads better than 1w3d
        count, duration_s = divmod(duration_s, seconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_percent(fraction: float) -> str:
    """Write a fraction as `percent` reads it: `5%`."""
    return f"{fraction * 100:.4f}".rstrip("0").rstrip(".") + "%"


def boolean(text: str, *, field: str) -> bool:
    """Parse yes, no and their kin. Raises Invalid."""
    word = text.lower()
    if word not in _YES | _NO:
        refuse(field, text, "valid are yes and no (or true, false, on, off, 1, 0)")
    return word in _YES


def choice_of(choices: Iterable[str]) -> Parser[str]:
    """Return the parser of a word that is one of these."""
    words = tuple(choices)

    def parse(text: str, *, field: str) -> str:
        if text not in words:
            refuse_unknown(text, words, thing=field, field=field)
        return text

    return parse


def origin(text: str, *, field: str = "from") -> Source | BackupSource:
    """Parse `volume`, `volume@snapshot` or `backup:<id>`. Raises Invalid."""
    if text.startswith(_BACKUP):
        backup = text.removeprefix(_BACKUP)
        _check_name(backup, text, thing="backup", field=field)
        return BackupSource(backup)
    volume, at, snapshot = text.partition("@")
    _check_name(volume, text, thing="volume", field=field)
    if not at:
        return Source(volume)
    _check_name(snapshot, text, thing="snapshot", field=field)
    return Source(volume, snapshot)


def path(text: str, *, field: str) -> Path:
    """Parse an absolute path. Raises Invalid."""
    if not text.strip("/") or not text.startswith("/"):
        refuse(field, text, "a path is absolute and not /, as in /srv/fast")
    if not text.isprintable() or ".." in Path(text).parts:
        refuse(field, text, 'a path has no ".." and no unprintable character')
    return Path("/" + text.lstrip("/"))  # Path keeps two leading slashes


def target_url(text: str, *, field: str = "url") -> str:
    """Parse where backups go into the one form of it. Raises Invalid."""
    if text.startswith("file://"):
        return f"file://{path(text.removeprefix('file://'), field=field)}"
    if text.startswith(_NFS):
        server, slash, share = text.removeprefix(_NFS).partition("/")
        return nfs_url(server, slash + share, field=field)
    if _S3_URL.fullmatch(text) is None:
        refuse(field, text, _S3_RULE if text.startswith(_S3) else _URL_RULE)
    return text.rstrip("/")


def nfs_url(server: str, share: str, *, field: str) -> str:
    """Return the URL of what a server exports. Raises Invalid."""
    if _NFS_SERVER.fullmatch(server) is None:
        refuse(field, server, "a server is a host name or an IP address, the longer ones in brackets, as in [fd00::1]")
    if not share.startswith("/") or not share.isprintable() or ".." in share.split("/"):
        refuse(field, share, 'a share is an absolute path without "..", as in /exports/backups')
    return f"{_NFS}{server}/{share.strip('/')}"


def nfs_share(url: str) -> tuple[str, str] | None:
    """Return the server and the share of a parsed URL; None if it is no `nfs://`."""
    server, slash, share = url.removeprefix(_NFS).partition("/")
    return (server, slash + share) if url.startswith(_NFS) else None


def endpoint(text: str, *, field: str = "endpoint") -> str:
    """Check the URL of an S3 service. Raises Invalid."""
    if _ENDPOINT.fullmatch(text) is None:
        refuse(field, text, "an endpoint is a URL without user and path, as in http://127.0.0.1:8333")
    return text


def region(text: str, *, field: str = "region") -> str:
    """Check the region of an S3 service. Raises Invalid."""
    if _REGION.fullmatch(text) is None:
        refuse(field, text, "a region is a word, as in us-east-1")
    return text


def mount_options(text: str, *, field: str = "mountOptions") -> str:
    """Check options as mount(8) takes them after `-o`. Raises Invalid."""
    if _MOUNT_OPTIONS.fullmatch(text) is None:
        refuse(field, text, "mount options are words with commas between them, as in vers=4.2,soft")
    return text


def parse_options(options: Mapping[str, object], *, drivers: Iterable[str] = DRIVERS) -> VolumeOptions:
    """Parse the options of a new volume; numbers and booleans of JSON are taken as their text. Raises Invalid."""
    if not options:  # as most have none
        return VolumeOptions()
    texts = {key: as_text(value, field=key) for key, value in options.items()}
    labels = {key.removeprefix(_LABEL): texts.pop(key) for key in list(texts) if key.startswith(_LABEL)}
    for key, text in texts.items():
        if key not in OPTIONS:
            refuse_unknown(key, OPTIONS, thing="option", value=text, field=key)
    return VolumeOptions(
        driver=_given(texts, "driver", choice_of(drivers)),
        pool=_given(texts, "pool", _pool_name),
        size_bytes=_given(texts, "size", size),
        thick=_given(texts, "thick", boolean),
        fs=_given(texts, "fs", choice_of(FILE_SYSTEMS)),
        source=_given(texts, "from", origin),
        uid=_given(texts, "uid", _user_or_group),
        gid=_given(texts, "gid", _user_or_group),
        mode=_given(texts, "mode", _mode),
        nocow=_given(texts, "nocow", boolean),
        compression=_given(texts, "compression", choice_of(COMPRESSIONS)),
        protected=_given(texts, "protected", boolean),
        labels=checked_labels(labels),
    )


def format_options(options: VolumeOptions) -> dict[str, str]:
    """Write options as a user would type them; `parse_options` reads the same back."""
    texts = {
        "driver": options.driver,
        "pool": options.pool,
        "size": None if options.size_bytes is None else exact_size(options.size_bytes),
        "thick": _yes_or_no(options.thick),
        "fs": options.fs,
        "from": None if options.source is None else str(options.source),
        "uid": None if options.uid is None else str(options.uid),
        "gid": None if options.gid is None else str(options.gid),
        "mode": None if options.mode is None else f"{options.mode:04o}",
        "nocow": _yes_or_no(options.nocow),
        "compression": options.compression,
        "protected": _yes_or_no(options.protected),
    }
    labels = {f"{_LABEL}{key}": value for key, value in options.labels.items()}
    return {key: text for key, text in texts.items() if text is not None} | labels


def as_text(value: object, *, field: str) -> str:
    """Return what a user would have typed for a value of JSON or TOML: numbers and booleans too. Raises Invalid."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) < _INTEGER_MAX:
        return str(value)
    if not isinstance(value, str):
        raise Invalid(f"cannot use {_plain(field)}: its value is {_kind(value)}; write it as text", field=field)
    return value


def refuse(field: str, text: str, cause: str) -> NoReturn:
    """Raise the Invalid for a text that is no value of this field."""
    raise Invalid(f"cannot use {_plain(field)} {_shown(text)}: {cause}", field=field)


def refuse_unknown(word: str, valid: Iterable[str], *, thing: str, field: str, value: str | None = None) -> NoReturn:
    """Raise the Invalid for a word that is none of the valid ones, naming the nearest first; `value` is its value."""
    words = list(valid)
    near = difflib.get_close_matches(word[:_SHOWN_MAX], words, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    given = "" if value is None else f" (value {_shown(value)})"
    cause = f"there is none of that name; {hint}valid are {', '.join(words)}"
    raise Invalid(f"cannot use {thing} {_shown(word)}{given}: {cause}", field=field)


def _check_name(part: str, whole: str, *, thing: str, field: str) -> None:
    """Refuse the whole text if the part of it that should be a name is none."""
    found = _NAME.match(part)
    wrong = found.end() if found else 0
    if len(part) > NAME_MAX:
        fault = f"has {len(part)} characters"
    elif not part:
        fault = "is empty"
    elif wrong < len(part):
        fault = f"{'contains' if wrong else 'starts with'} {part[wrong]!r}"
    else:
        return
    refuse(field, whole, f"the {thing} name {fault}; {_NAME_RULE}")


def _given(texts: Mapping[str, str], key: str, parse: Parser[T]) -> T | None:
    text = texts.get(key)
    return None if text is None else parse(text, field=key)


def _kind(value: object) -> str:
    kinds = {type(None): "null", list: "a list", dict: "an object", float: "a fraction", int: "too large a number"}
    return kinds.get(type(value), type(value).__name__)


def _pool_name(text: str, *, field: str) -> str:
    return name(text, thing="pool", field=field)


def _yes_or_no(value: bool | None) -> str | None:  # noqa: FBT001 - it is what is acted on
    return None if value is None else "yes" if value else "no"


def _user_or_group(text: str, *, field: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > ID_MAX:
        refuse(field, text, f"a {field} is a number from 0 to {ID_MAX}")
    return int(text)


def _mode(text: str, *, field: str) -> int:
    if not re.fullmatch(r"[0-7]{1,5}", text) or int(text, 8) > MODE_MAX:
        refuse(field, text, "a mode is octal, from 0 to 7777, as in 0755")
    return int(text, 8)


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Check the labels of a volume. Raises Invalid."""
    if len(labels) > LABELS_MAX:
        message = f"cannot use {len(labels)} labels: a volume has at most {LABELS_MAX}"
        raise Invalid(message, field="label")
    for key, value in labels.items():
        option = f"{_LABEL}{key}"
        if not 0 < len(key) <= NAME_MAX or not key.isprintable():
            refuse(option, value, f"a label's key is 1 to {NAME_MAX} printable characters")
        if len(value) > LABEL_VALUE_MAX or not _is_text(value):
            refuse(option, value, f"a label's value is text of at most {LABEL_VALUE_MAX} characters")
    return dict(labels)


def _is_text(value: str) -> bool:
    """Tell whether SQLite and JSON can hold it: no lone surrogate, no NUL."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_MAX]) + ("…" if len(text) > _SHOWN_MAX else "")


def _plain(field: str) -> str:
    return field if field.isprintable() and len(field) <= _SHOWN_MAX else _shown(field)
