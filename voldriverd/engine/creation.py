"""What a new volume will be: the request checked against pools, drivers and an existing volume of the name."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from voldriverd import model, names
from voldriverd.driver import Driver, Key, TreeOptions
from voldriverd.engine import pools, space, use
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, Invalid, NotFound, Unsupported

_DEFAULTS: Final = TreeOptions()


@dataclass(frozen=True, slots=True)
class Request:
    """What a new volume should be: options parsed, and as they were typed."""

    name: str
    options: names.VolumeOptions
    given: Mapping[str, str]
    description: str | None = None
    must_be_new: bool = False
    """Whether an existing volume of the name is an error although its options agree."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of a new volume and of its tree, not committed yet."""

    volume: model.Volume
    tree: model.Tree


def plan(engine: Engine, request: Request, volume_id: model.VolumeId) -> Plan:
    """Check a request and choose its pool; nothing is changed. Raises every kind of error but Exists."""
    what = f"cannot create volume {request.name}"
    options = request.options
    assert not isinstance(options.source, names.BackupSource), "a restore has a plan of its own"
    if options.source is None:
        pool, driver = engine.pools.choose(driver=options.driver, name=options.pool)
        asked = asked_of_tree(options)
        ensure_honoured(engine, pool, driver, asked)
        made, source = driver.complete(asked), None
    else:
        origin = find_origin(engine, options.source, what)
        pool, made, source = engine.pools.get(origin.pool_id), _inherited(engine, origin, options, what), origin.key
    space.ensure_reserve(engine, pool, what)
    return rows(engine, request, volume_id, pool, made, source=source)


def rows(
    engine: Engine,
    request: Request,
    volume_id: model.VolumeId,
    pool: pools.Pool,
    made: TreeOptions,
    *,
    source: Key | None,
) -> Plan:
    """Return the rows of a new volume; `made` are the completed options of its tree."""
    key = model.volume_key(volume_id, 1)
    volume = model.Volume(
        id=volume_id,
        uuid=str(uuid.uuid4()),
        name=request.name,
        description=request.description,
        pool_id=pool.row.id,
        driver=pool.row.driver,
        key=key,
        content=1,
        state=model.VolumeState.REGISTERING,
        size_bytes=made.size_bytes,
        options=dict(request.given),
        labels=dict(request.options.labels),
        is_protected=bool(request.options.protected),
        created_at=engine.now(),
    )
    return Plan(volume, model.Tree(key, pool.row.id, made, source, is_settled=source is not None))


def agreed(engine: Engine, existing: model.Volume, asked: names.VolumeOptions) -> model.Volume:
    """Return an existing volume if the options given agree with it (D2). Raises Exists naming one that differs."""
    have = effective(engine, existing)
    what = f"cannot create volume {existing.name}: it exists"
    for each in fields(asked):
        wanted, present = getattr(asked, each.name), getattr(have, each.name)
        if each.name == "labels" or wanted is None or wanted == present:
            continue
        option = {"size_bytes": "size", "source": "from"}.get(each.name, each.name)
        raise Exists(f"{what} with {option} = {_shown(option, present)}, not {_shown(option, wanted)}")
    for label, value in asked.labels.items():
        if have.labels.get(label) != value:
            raise Exists(f"{what} with label.{label} = {have.labels.get(label, 'nothing')}, not {value}")
    return existing


def effective(engine: Engine, volume: model.Volume) -> names.VolumeOptions:
    """Return what a volume's options come to, defaults filled in."""
    made = tree_options(engine, volume.key)
    return replace(
        names.parse_options(volume.options),
        driver=volume.driver,
        pool=engine.pools.get(volume.pool_id).row.name,
        size_bytes=volume.size_bytes,
        thick=made.thick,
        fs=made.fs,
        nocow=made.nocow,
        protected=volume.is_protected,
        labels=volume.labels,
    )


def tree_options(engine: Engine, key: Key | None) -> TreeOptions:
    """Return what a tree was made with, or what its origin was."""
    tree = None if key is None else engine.store.tree(key)
    return TreeOptions() if tree is None else tree.options


@dataclass(frozen=True, slots=True)
class Origin:
    """The tree that a clone is made from, and the size that it inherits."""

    key: Key
    pool_id: model.PoolId
    size_bytes: int | None


def find_origin(engine: Engine, source: names.Source, what: str) -> Origin:
    """Return the tree that `from` names. Raises NotFound, InUse, Unsupported (a live copy is not allowed)."""
    volume = engine.store.volume_named(source.volume)
    if volume is None:
        raise NotFound(f"{what}: no volume is named {source.volume}")
    use.ensure_resting(volume, what)
    if source.snapshot is None:
        use.ensure_cloneable(engine, volume, what)
        return Origin(volume.tree, volume.pool_id, volume.size_bytes)
    snapshot = _named_or_numbered(engine, volume, source.snapshot)
    if snapshot is None or snapshot.state is not model.SnapshotState.CREATED:
        raise NotFound(f"{what}: volume {volume.name} has no snapshot named {source.snapshot}")
    return Origin(snapshot.tree, volume.pool_id, snapshot.size_bytes)


def _named_or_numbered(engine: Engine, volume: model.Volume, text: str) -> model.Snapshot | None:
    """Return a volume's snapshot of a name, or, if there is none, of an API id such as 1s7."""
    named = engine.store.snapshot_named(volume.id, text)
    number = text.removeprefix("1s")
    if named is not None or not (text.startswith("1s") and number.isdecimal() and len(number) < len(str(2**63))):
        return named
    numbered = engine.store.snapshot(model.SnapshotId(int(number)))
    return numbered if numbered is not None and numbered.volume_id == volume.id else None


def _inherited(engine: Engine, origin: Origin, options: names.VolumeOptions, what: str) -> TreeOptions:
    row = engine.pools.get(origin.pool_id).row
    if options.driver not in {None, row.driver} or options.pool not in {None, row.name}:
        raise Invalid(f"{what}: a clone stays in its source's pool: driver {row.driver}, pool {row.name}", field="from")
    have = replace(tree_options(engine, origin.key), size_bytes=origin.size_bytes)
    if options.fs not in {None, have.fs}:
        raise Invalid(f"{what}: a clone keeps its source's fs, {have.fs or 'which has none'}", field="fs")
    for name in ("thick", "uid", "gid", "mode", "nocow", "compression"):
        if getattr(options, name) is not None:
            raise Invalid(f"{what}: option {name} does not go with from: a clone is like its source", field=name)
    if options.size_bytes is None:
        return have
    driver = engine.pools.driver(origin.pool_id)
    ensure_honoured(engine, engine.pools.get(origin.pool_id), driver, TreeOptions(size_bytes=options.size_bytes))
    if origin.size_bytes is not None and options.size_bytes < origin.size_bytes:
        sizes = names.format_size(options.size_bytes), names.format_size(origin.size_bytes)
        raise Invalid(f"{what}: size {sizes[0]} is below its source's {sizes[1]}", field="size")
    return replace(have, size_bytes=options.size_bytes)


def ensure_honoured(engine: Engine, pool: pools.Pool, driver: Driver, asked: TreeOptions) -> None:
    """Refuse options that a pool's driver cannot honour. Raises Unsupported, naming the drivers that can."""
    if asked == _DEFAULTS:
        return
    for each in fields(asked):
        option = each.name.removesuffix("_bytes")
        if getattr(asked, each.name) in {None, False} or option in driver.options:
            continue
        driver.complete(asked)  # it may know better what is to be done
        able = engine.pools.honouring(option)
        hint = f"drivers that can: {', '.join(able)}" if able else "no pool here can"
        raise Unsupported(f"driver {pool.row.driver} in pool {pool.row.name} cannot honour option {option}; {hint}")


def asked_of_tree(options: names.VolumeOptions) -> TreeOptions:
    """Return what was asked of the tree alone."""
    return TreeOptions(
        size_bytes=options.size_bytes,
        thick=bool(options.thick),
        fs=options.fs,
        uid=options.uid,
        gid=options.gid,
        mode=options.mode,
        nocow=bool(options.nocow),
        compression=options.compression,
    )


def _shown(option: str, value: object) -> str:
    if option == "size" and isinstance(value, int):
        return names.format_size(value)
    return "nothing" if value is None else str(value)
