"""Volumes: create and clone, resize, set."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from voldriverd import model, names
from voldriverd.driver import Driver, Key, TreeOptions
from voldriverd.engine import creation, failures, space, trees, use
from voldriverd.engine.context import Engine
from voldriverd.errors import Error, Exists, Unsupported
from voldriverd.model import VolumeState
from voldriverd.store.write import Write


def create(
    engine: Engine,
    request: creation.Request,
    volume_id: model.VolumeId,
    *,
    begun: Callable[[model.Volume], None] | None = None,
) -> model.Volume:
    """Make a volume, empty or a clone; an existing one of that name is returned if the options agree.

    Both halves in one call; `begun` is called between them. Raises what `begin_create` and
    `finish_create` raise; then nothing is left.
    """
    plan = begin_create(engine, request, volume_id)
    if isinstance(plan, model.Volume):
        return plan
    if begun is not None:
        begun(plan.volume)
    return finish_begun(engine, plan)


def begin_create(engine: Engine, request: creation.Request, volume_id: model.VolumeId) -> creation.Plan | model.Volume:
    """Commit the rows of a new volume: from then on it exists for everybody, and a crash is ended by recovery.

    Returns an existing volume of that name if the options agree. Raises Invalid, Exists, NotFound,
    InUse (the source of a clone), Unsupported, Unusable; then nothing has changed.
    """
    present = existing(engine, request)
    if present is not None:
        return present
    plan = creation.plan(engine, request, volume_id)

    def begin(write: Write) -> None:
        write.add_tree(plan.tree)
        write.put_volume(plan.volume)

    engine.store.commit(begin)
    return plan


def existing(engine: Engine, request: creation.Request) -> model.Volume | None:
    """Return the volume that has the name already, if its options agree with what is asked. Raises Exists."""
    present = engine.store.volume_named(request.name)
    if present is not None and request.must_be_new:
        raise Exists(f"cannot create volume {request.name}: a volume of this name exists")
    return None if present is None else creation.agreed(engine, present, request.options)


def finish_begun(engine: Engine, plan: creation.Plan) -> model.Volume:
    """Do what `finish_create` does, in the pool of the volume.

    If that has gone meanwhile, or other copies have filled it, no volume is left either.
    """
    try:
        driver = engine.pools.driver(plan.volume.pool_id)
        if plan.tree.source is not None:
            space.ensure_copy(engine, plan.volume.pool_id, f"cannot create volume {plan.volume.name}")
    except Error:
        _forget(engine, plan.volume, plan.tree)
        raise
    return finish_create(engine, plan, driver)


def finish_create(engine: Engine, plan: creation.Plan, driver: Driver) -> model.Volume:
    """Make the tree of a begun volume, which is ready then; what fails leaves no volume.

    After a crash recovery finds the tree, or makes one that was to be empty, and so comes to the same.
    """
    volume, tree = plan.volume, plan.tree
    ready = replace(volume, state=VolumeState.INACTIVE)
    try:
        with failures.told_as(f"cannot create volume {volume.name}"):
            if tree.source is None:
                driver.create(tree.key, tree.options)
            else:
                clone(driver, tree.source, tree.key, size_bytes=volume.size_bytes)
    except Error:
        _forget(engine, volume, tree)
        raise
    engine.store.foresee(ready)
    return ready


def clone(driver: Driver, source: Key, target: Key, *, size_bytes: int | None) -> None:
    """Clone a tree for a volume and give it the volume's size."""
    driver.clone(source, target, read_only=False)
    if size_bytes is not None and driver.usage(target).limit_bytes != size_bytes:
        driver.resize(target, size_bytes)


def resize(
    engine: Engine, volume: model.Volume, size_bytes: int, *, begun: Callable[[model.Volume], None] | None = None
) -> model.Volume:
    """Set the size of a volume, mounted or not. Raises Invalid, Unsupported, Unusable; then the old size stands.

    `begun` is called once the row says that it is being resized.
    """
    what = f"cannot resize volume {volume.name}"
    use.ensure_resting(volume, what)
    driver = engine.pools.driver(volume.pool_id)
    if "size" not in driver.options:
        driver.complete(TreeOptions(size_bytes=size_bytes))  # says what is to be done about it
        raise Unsupported(f"{what}: driver {volume.driver} has no sizes")
    settled = replace(volume, size_bytes=size_bytes, message=None)
    updating = replace(settled, state=VolumeState.UPDATING)
    engine.store.commit(lambda write: write.put_volume(updating))
    if begun is not None:
        begun(updating)
    try:
        with failures.told_as(what):
            driver.resize(volume.tree, size_bytes)
        engine.store.commit(lambda write: write.put_volume(settled), is_vital=True)
    except Error as err:
        engine.store.commit(lambda write: write.put_volume(volume), is_vital=True)
        err.args = (str(err).replace(f"tree {volume.tree}", f"volume {volume.name}", 1),)  # drivers know keys alone
        raise
    return settled


def set_properties(
    engine: Engine,
    volume: model.Volume,
    *,
    description: str | None = None,
    is_protected: bool | None = None,
    labels: Mapping[str, str] | None = None,
    label_changes: Mapping[str, str] | None = None,
) -> model.Volume:
    """Change what is not None; labels are replaced as a whole, an empty description is none.

    Then the changes are made to the labels: one with an empty value is taken away, those that are not named stay.
    Raises Invalid: these are too many.
    """
    changed = volume
    if description is not None:
        changed = replace(changed, description=description or None)
    if is_protected is not None:
        changed = replace(changed, is_protected=is_protected)
    if labels is not None:
        changed = replace(changed, labels=dict(labels))
    if label_changes is not None:
        kept = {key: value for key, value in changed.labels.items() if key not in label_changes}
        new = {key: value for key, value in label_changes.items() if value}
        changed = replace(changed, labels=names.checked_labels(kept | new))
    is_vital = is_protected is False  # without that it cannot be removed, on a full disk either
    engine.store.commit(lambda write: write.put_volume(changed), is_vital=is_vital)
    return changed


def _forget(engine: Engine, volume: model.Volume, tree: model.Tree) -> None:
    engine.store.commit(lambda write: write.delete_volume(volume), is_vital=True)
    trees.discard(engine, volume.pool_id, tree.key)
