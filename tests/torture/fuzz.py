"""Every parser of bytes that somebody else has written: it reads them or refuses them in its own words.

The short form tries spoilt examples (hypothesis); the long one lets atheris look for new ways through the code, each
parser in a process of its own, until its part of the time is up.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from voldriverd import config, names
from voldriverd.api import auth
from voldriverd.api.rancher import body, filters, ids, schemas
from voldriverd.api.rancher.problems import Problem
from voldriverd.backup import lists, manifest, sealing
from voldriverd.backup.index import Index
from voldriverd.engine import remembered
from voldriverd.errors import Error
from voldriverd.kernel import receive, tar

_UUID: Final = "11111111-2222-4333-8444-555555555555"
_TIME: Final = "2026-01-02T03:04:05+00:00"


@dataclass(frozen=True, slots=True)
class Parser:
    """One door: what reads, what it may raise, and examples of what it likes."""

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    examples: tuple[bytes, ...]


def check(parser: Parser, content: bytes) -> None:
    """Read; anything but success and a refusal passes through, as an error does that says nothing or too much."""
    said = "read"
    try:
        parser.read(content)
    except parser.refusals as err:
        said = str(err)
    assert 0 < len(said) < 5_000, said[:500]


def _options(content: bytes) -> object:
    pairs = parse_qsl(content.decode(errors="surrogateescape"), keep_blank_values=True, max_num_fields=200)
    return names.parse_options(dict(pairs))


def _words(content: bytes) -> None:
    text = content.decode(errors="replace")
    for parse in (names.size, names.duration, names.percent, names.target_url, names.endpoint, names.region):
        with suppress(Error):
            parse(text, field="x")
    with suppress(Error):
        names.name(text, thing="volume")
    with suppress(Error):
        names.mount_options(text, field="x")
    with suppress(Error):
        names.nfs_url(text, text, field="x")
    names.origin(text)


def _toml(content: bytes) -> object:
    return config.parse(tomllib.loads(content.decode()))


def _body(content: bytes) -> None:
    for kind in ("", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        with suppress(Problem):
            given = body.decode(content, kind)
            for schema in schemas.ALL.values():
                with suppress(Problem, Error):
                    body.parse_creation(schema, given)
                with suppress(Problem, Error):
                    body.parse_update(schema, given)


def _query(content: bytes) -> None:
    text = content.decode(errors="replace")
    query = parse_qsl(text, keep_blank_values=True, max_num_fields=200)
    for schema in schemas.ALL.values():
        wish = filters.parse(schema, query)
        for condition in wish.conditions:
            filters.wanted(schema, condition.field, condition.value)
        if schema.letters is not None:
            ids.parse(schema, text)


def _catalogue(content: bytes) -> object:
    with tempfile.TemporaryDirectory() as pool:
        (Path(pool) / remembered.FILE_NAME).write_bytes(content)
        return remembered.read(Path(pool))


def _tar(content: bytes) -> None:
    headers, source = tar.Headers(), io.BytesIO(content)
    while len(piece := source.read(headers.wanted)) == headers.wanted:
        if (member := headers.take(piece)) is not None:
            source.seek(min(member.size_bytes + tar.padding(member.size_bytes), len(content)), io.SEEK_CUR)


def _index(content: bytes) -> None:
    index = Index()
    for start in range(0, len(content), 700):
        index.feed(content[start : start + 700])
    list(index)


def _lists(content: bytes) -> None:
    for kind in lists.Kind:
        with suppress(manifest.Malformed):
            list(lists.rows([content], kind))


def _send_stream(content: bytes) -> None:
    translation = receive._Translation("0", None)
    for start in range(0, len(content), 97):
        for _ in translation.translate(content[start : start + 97]):
            pass
    translation.end()


def _archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as file:
        for number, kind in enumerate((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)):
            info = tarfile.TarInfo(f"{'long/' * 30}{number}")
            info.type, info.linkname = kind, "x" * 120
            info.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5", "GNU.sparse.map": "0,512,1024,512"}
            file.addfile(info)
    return made.getvalue()


def _json(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


_MANIFEST: Final = {
    "format": 1,
    "uuid": _UUID,
    "volume": {"uuid": _UUID, "name": "v", "driver": "btrfs", "pool": "p", "options": {}, "labels": {}, "tree": {}},
    "snapshot": {"uuid": _UUID, "name": "s", "created": _TIME},
    "body": {"format": "tar", "version": 1, "lists": [["0" * 64, 5]], "notes": []},
}
_VOLUME: Final = {"id": 1, "key": "v1.1", "state": "inactive", "options": {}, "labels": {}, "created_at": _TIME}
_STREAM: Final = b"btrfs-stream\0\1\0\0\0" + receive._sealed(1, b"\x0f\0\1\0x\1\0\x10\0" + bytes(16))

PARSERS: Final = {
    "options": Parser(_options, (Error, ValueError), (b"size=1G&driver=loop&label.a=b&mode=755&from=db@s&uid=1",)),
    "words": Parser(
        _words, (Error,), (b"10G", b"7d", b"5%", b"s3://bucket/prefix", b"backup:1b5", b"nfs://h/x", b"db@s")
    ),
    "toml": Parser(
        _toml,
        (Error, ValueError, RecursionError),
        (b'root="/x"\n[pools.a]\ndriver="loop"\npath="/a"\n[targets.t]\nurl="file:///t"\n[api]\nlisten="[::1]:1"\n',),
    ),
    "body": Parser(_body, (), (_json({"name": "v", "labels": {"a": "b"}, "expires": _TIME}), b"name=v&labels.a=b")),
    "query": Parser(_query, (ValueError,), (b"name_prefix=a&created_gt=2026-01-01T00:00:00Z&volumeId=1v5&limit=3",)),
    "credentials": Parser(lambda content: auth._decode(content.decode("latin-1")), (), (b"Basic YTpi",)),
    "catalogue": Parser(
        _catalogue, (Error,), (_json({"catalogue": 1, "pool": {}}, {"volume": _VOLUME}, {"snapshot": _VOLUME}),)
    ),
    "manifest": Parser(manifest.from_json, (manifest.Malformed,), (_json(_MANIFEST),)),
    "lists": Parser(_lists, (), (b'{"chunks":[["%s",5]]}\n{"members":[["a",0,5]]}' % (b"0" * 64),)),
    "header": Parser(sealing.parse, (sealing.Broken,), (sealing.new(_UUID, None),)),
    "tar": Parser(_tar, (tar.Malformed,), (_archive(),)),
    "index": Parser(_index, (), (_archive(),)),
    "stream": Parser(_send_stream, (receive.Refused,), (_STREAM,)),
}


def run_for(time_s: float, *, seed: int) -> Iterable[str]:
    """Let atheris try each parser for its part of the time; yields what it says at the end. Raises CalledProcessError.

    What it found wrong it leaves as a file, and prints its name and the traceback.
    """
    for name, parser in PARSERS.items():
        with tempfile.TemporaryDirectory(prefix="voldriver-fuzz-") as corpus:
            for number, example in enumerate(parser.examples):
                (Path(corpus) / str(number)).write_bytes(example)
            limits = [f"-max_total_time={max(1, int(time_s / len(PARSERS)))}", f"-seed={seed or 1}", "-timeout=20"]
            argv = [sys.executable, "-c", _PROGRAM, name, corpus, *limits, "-rss_limit_mb=1024"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise AssertionError(f"parser {name}: {done.stdout[-4_000:]}{done.stderr[-6_000:]}")
            yield f"{name}: {done.stderr.strip().splitlines()[-1]}"


def main(name: str, arguments: list[str], fuzzer: Any) -> None:
    """Try one parser until its time is up; atheris, which was given, ends the process."""
    fuzzer.Setup(["fuzz", *arguments], lambda content: check(PARSERS[name], content))
    fuzzer.Fuzz()


_PROGRAM: Final = """
import sys, atheris
with atheris.instrument_imports(include=["voldriverd"]):
    from tests.torture import fuzz
fuzz.main(sys.argv[1], sys.argv[2:], atheris)
"""
"""What is to be watched is imported under the eyes of atheris, which takes seconds for anything more."""
