"""Targets: what is configured and what was made through the API, how each is opened, and whether it can be used.

An NFS share is mounted at `<root>/targets/<id>` for as long as somebody uses it; what a crash leaves mounted is
unmounted at start.
"""

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from voldriverd import model, names
from voldriverd.backup.faults import Cancelled, Fault, Kind
from voldriverd.backup.keys import Keys
from voldriverd.backup.objects import Place
from voldriverd.engine import failures, trees
from voldriverd.errors import Error, Exists, InUse, Invalid, NotFound, Unsupported
from voldriverd.kernel import fs, nfs
from voldriverd.model import Health, Secret
from voldriverd.store.write import Write

if TYPE_CHECKING:
    from voldriverd.backup.repository import Repository
    from voldriverd.engine.context import Engine

_log = logging.getLogger(__name__)

SECRET_MAX: Final = 4_096
"""Bytes in a file of a secret: more is another file."""
_OF_ITS_CONTENT: Final = {Kind.MISSING, Kind.DAMAGED, Kind.FULL, Kind.BUSY}
"""Faults by which one backup is hit, or only what is written: the others can be read still."""


@dataclass(slots=True)
class _Share:
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is mounted or unmounted."""
    users: int = 0


@dataclass(frozen=True, slots=True)
class Spec:
    """What is configured of a target; secrets are files, read each time that they are wanted."""

    name: str
    url: str
    endpoint: str | None = None
    region: str | None = None
    access_key_file: Path | None = None
    secret_key_file: Path | None = None
    passphrase_file: Path | None = None
    mount_options: str | None = None


class Targets:
    """What is known of targets at run time: the configuration, the health of each, the shares that are mounted."""

    def __init__(self, specs: Iterable[Spec] = (), *, default_name: str | None = None) -> None:
        """Take what is configured; nobody has looked at any yet."""
        self._specs = {spec.name: spec for spec in specs}
        self.default_name = default_name
        """The target of who asks for none; None: the only one, if there is one."""
        self.keys = Keys()
        """Of the repositories that were opened lately."""
        self._healths: dict[model.TargetId, tuple[Health, str | None]] = {}
        self._shares: defaultdict[model.TargetId, _Share] = defaultdict(_Share)

    def spec(self, target: model.Target) -> Spec | None:
        """Return what is configured of a target; None for one that was made through the API."""
        return self._specs.get(target.name) if target.is_configured else None

    def specs(self) -> list[Spec]:
        """Return all that is configured."""
        return list(self._specs.values())

    def health(self, target_id: model.TargetId) -> tuple[Health, str | None]:
        """Return whether a target could be used when it was last, and why not; one never used is taken for usable."""
        return self._healths.get(target_id, (Health.AVAILABLE, None))

    def note(self, target_id: model.TargetId, fault: str | None) -> None:
        """Note how a use of a target ended; None: well."""
        self._healths[target_id] = (Health.AVAILABLE if fault is None else Health.UNAVAILABLE, fault)

    @contextmanager
    def shared(self, target: model.Target, server: str, share: str, place: Path) -> Iterator[None]:
        """Have an NFS share mounted for the block; blocks beside each other share one mount. Raises OSError."""
        mounted = self._shares[target.id]
        with mounted.lock:
            if not mounted.users:
                nfs.detach(place)  # left by a use that could not unmount it
                nfs.attach(server, share, place, target.mount_options)
            mounted.users += 1
        try:
            yield
        finally:
            with mounted.lock:
                mounted.users -= 1
                if not mounted.users:
                    _detach(place)


def configure(engine: "Engine") -> None:
    """Make rows of what is configured and unmount what a crash left; for the start, when nobody uses a target yet.

    A target of that name that was made through the API becomes the configured one. One that is not configured any
    more stays, without the secrets that the configuration named.
    """
    for spec in engine.targets.specs():
        present = engine.store.target_named(spec.name)
        wanted = replace(
            present or _new_row(engine, spec.name, spec.url),
            is_configured=True,
            url=spec.url,
            endpoint=spec.endpoint,
            region=spec.region,
            access_key=None,
            secret_key=None,
            passphrase=None,
            mount_options=spec.mount_options,
            repository_uuid=present.repository_uuid if present is not None and present.url == spec.url else None,
        )
        if wanted != present:
            _put(engine, wanted)
    for target in engine.store.targets():
        if target.is_configured and engine.targets.spec(target) is None:
            _put(engine, replace(target, is_configured=False))
    base = _base(engine)
    for place in base.iterdir() if base.exists() else ():
        _detach(place)


def default(engine: "Engine") -> model.Target:
    """Return the target of a backup that names none. Raises Invalid, naming the choices."""
    live = engine.store.targets()
    wanted = engine.targets.default_name
    found = [target for target in live if wanted is None or target.name == wanted]
    if len(found) == 1:
        return found[0]
    if not live:
        raise Invalid("cannot back up: there is no target; configure one in [targets.NAME]", field="target")
    valid = ", ".join(sorted(target.name for target in live))
    raise Invalid(f"cannot back up: no target is given and default_target is not set; valid: {valid}", field="target")


def row(engine: "Engine", target_id: model.TargetId) -> model.Target:
    """Return a live target. Raises NotFound."""
    target = engine.store.target(target_id)
    if target is None:
        raise NotFound(f"there is no target 1bt{target_id}")
    return target


@contextmanager
def opened(
    engine: "Engine", target_id: model.TargetId, *, cancelled: threading.Event | None = None
) -> "Iterator[Repository]":
    """Open the repository of a target for the block, and note the target's health by how that goes.

    Raises NotFound (it is removed), Unusable (with the cause) and Cancelled.
    """
    target = row(engine, target_id)
    try:
        with _opened(engine, target, cancelled) as repository:
            _recognise(engine, target, repository)
            engine.targets.note(target_id, None)
            yield repository
    except Fault as err:
        if err.kind not in _OF_ITS_CONTENT:
            engine.targets.note(target_id, str(err))
        raise


def look(engine: "Engine", target_id: model.TargetId, *, cancelled: threading.Event | None = None) -> None:
    """Open a target, for its health alone. Raises what `opened` raises."""
    target = row(engine, target_id)
    try:
        with _opened(engine, target, cancelled) as repository:
            _recognise(engine, target, repository)
            engine.targets.note(target_id, None)
    except Error as err:
        engine.targets.note(target_id, str(err))
        raise


def create(engine: "Engine", draft: model.TargetDraft, *, cancelled: threading.Event | None = None) -> model.Target:
    """Make a target of a place that can be used. Raises Exists (the name is taken), Invalid, and what `opened` raises.

    A place has one target: what is removed in one of two would be gone in the other, which lists it still. Nothing is
    made once `cancelled` is set.
    """
    what = f"cannot create target {draft.name}"
    if engine.store.target_named(draft.name) is not None:
        raise Exists(f"{what}: a target of this name exists")
    if (draft.access_key is None) != (draft.secret_key is None):
        raise Invalid(f"{what}: an access key and a secret key go together", field="secretKey")
    target = replace(
        _new_row(engine, draft.name, draft.url),
        description=draft.description,
        endpoint=draft.endpoint,
        region=draft.region,
        access_key=_text(draft.access_key),
        secret_key=_text(draft.secret_key),
        passphrase=_text(draft.passphrase),
        mount_options=draft.mount_options,
    )
    with _opened(engine, target, cancelled) as repository:
        target = replace(target, repository_uuid=repository.uuid)
    for other in engine.store.targets():
        if (other.url, other.endpoint) == (target.url, target.endpoint) or other.repository_uuid == repository.uuid:
            raise Invalid(f"{what}: its place is that of target {other.name}", field="url")
    if cancelled is not None and cancelled.is_set():
        raise Cancelled
    _put(engine, target)
    engine.targets.note(target.id, None)
    return target


def remove(engine: "Engine", target_id: model.TargetId) -> model.Target:
    """Forget a target and its backups; what lies there stays, and a scan of a target made anew finds it.

    Raises NotFound, Unsupported (it is configured) and InUse (a backup is being made there).
    """
    target = row(engine, target_id)
    what = f"cannot remove target {target.name}"
    if target.is_configured:
        raise Unsupported(f"{what}: it is configured; remove [targets.{target.name}] from the configuration file")
    now = engine.now()
    gone = replace(target, access_key=None, secret_key=None, passphrase=None, removed_at=now)

    def change(write: Write) -> list[model.Backup]:
        with_trees = write.end_backups(target_id, now, "its target was removed; what lies there stays")
        creating = [backup for backup in with_trees if backup.state is model.BackupState.CREATING]
        if creating:
            raise InUse(f"{what}: backup {creating[0].shown_name} is being made there; cancel it first")
        write.put_target(gone)
        return with_trees

    for backup in engine.store.commit(change):
        discard_tree(engine, backup)
    return gone


def discard_tree(engine: "Engine", backup: model.Backup) -> None:
    """Hand the tree that a backup pointed to (as the row was before) to the worker."""
    tree = None if backup.key is None else engine.store.tree(backup.key)
    if tree is not None:
        trees.discard(engine, tree.pool_id, tree.key)


@contextmanager
def _opened(engine: "Engine", target: model.Target, cancelled: threading.Event | None) -> "Iterator[Repository]":
    from voldriverd.backup.repository import Repository  # noqa: PLC0415 - with what it needs a fifth of a start

    spec = engine.targets.spec(target) or Spec(target.name, target.url)
    what = f"cannot use target {target.name}"
    with ExitStack() as stack:
        access_key = _secret(what, target.access_key, spec.access_key_file)
        secret_key = _secret(what, target.secret_key, spec.secret_key_file)
        passphrase = _secret(what, target.passphrase, spec.passphrase_file)
        url = stack.enter_context(_reachable(engine, target, what))
        place = Place(url, target.endpoint, target.region, access_key, secret_key)
        with failures.told_as(what):
            repository = Repository.open(place, passphrase, keys=engine.targets.keys, cancelled=cancelled)
        stack.callback(repository.close)
        yield repository


def _recognise(engine: "Engine", target: model.Target, repository: "Repository") -> None:
    """Refuse a place that holds another repository than before: most often a disk that is not mounted."""
    if target.repository_uuid is None:
        _put(engine, replace(target, repository_uuid=repository.uuid))
    elif target.repository_uuid != repository.uuid:
        message = (
            f"cannot use target {target.name}: {target.url} holds another repository than before ({repository.uuid}): "
            "is it mounted? If it was emptied on purpose, make a target of another name"
        )
        raise Fault(message, kind=Kind.OCCUPIED)


@contextmanager
def _reachable(engine: "Engine", target: model.Target, what: str) -> Iterator[str]:
    """Give the URL of a target as the repository takes it: an NFS share is mounted for the block."""
    found = names.nfs_share(target.url)
    if found is None:
        yield target.url
        return
    place = _base(engine) / str(target.id)
    with ExitStack() as stack:
        try:
            fs.make_directory(_base(engine), mode=0o700)
            fs.make_directory(place, mode=0o700)
            stack.enter_context(engine.targets.shared(target, *found, place))
        except OSError as err:
            raise Fault(f"{what}: cannot mount {target.url}: {err.strerror}", kind=Kind.UNREACHABLE) from err
        yield f"file://{place}"


def _detach(place: Path) -> None:
    try:
        nfs.detach(place)
        place.rmdir()
    except OSError as err:  # somebody stands in it, or the server is gone: the next use or start tries again
        _log.warning("verb=detach directory=%s result=%s", place, err)


def _secret(what: str, value: str | None, file: Path | None) -> Secret | None:
    """Return a secret from a row or from the file that is configured, without the line end that editors add."""
    if file is None:
        return None if value is None else Secret(value)
    try:
        with file.open("rb") as opened_file:
            content = opened_file.read(SECRET_MAX + 1)
        text = content.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as err:
        cause = err.strerror if isinstance(err, OSError) else "it is no text"
        raise Fault(f"{what}: cannot read {file}: {cause}", kind=Kind.CREDENTIALS) from err
    if not text or len(content) > SECRET_MAX:
        cause = "too long" if text else "empty"
        raise Fault(f"{what}: {file} holds no secret: it is {cause}", kind=Kind.CREDENTIALS)
    return Secret(text)


def _new_row(engine: "Engine", name: str, url: str) -> model.Target:
    return model.Target(
        id=model.TargetId(engine.store.reserve_id("targets")),
        uuid=str(uuid.uuid4()),
        name=name,
        description=None,
        is_configured=False,
        url=url,
        created_at=engine.now(),
    )


def _put(engine: "Engine", target: model.Target) -> None:
    engine.store.commit(lambda write: write.put_target(target))


def _base(engine: "Engine") -> Path:
    return engine.root / "targets"


def _text(secret: Secret | None) -> str | None:
    return None if secret is None else secret.text
