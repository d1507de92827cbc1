"""API keys as the engine and the store keep them."""

import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from voldriverd import model, store
from voldriverd.engine import apikeys, pools, upkeep
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, InUse, NotFound, Unusable
from voldriverd.model import Role, Secret
from voldriverd.store.write import Write

PUBLIC_LENGTH = 20
SECRET_LENGTH = 46


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    database = store.Store(tmp_path)
    yield Engine(tmp_path, database, pools.Pools(database, [], default_driver="btrfs"), "boot")
    database.close()


def make(engine: Engine, name: str | None = "ci", role: Role = Role.FULL) -> tuple[model.ApiKey, Secret]:
    return apikeys.create(engine, name=name, description=None, role=role)


# The engine


def test_the_secret_of_a_key_is_its_secret_and_no_other_is(engine: Engine) -> None:
    key, secret = make(engine)
    other, other_secret = make(engine, "other")
    assert apikeys.is_secret(key, secret)
    assert not apikeys.is_secret(key, other_secret)
    assert not apikeys.is_secret(other, Secret(secret.text[:-1] + "?"))


def test_every_key_is_new_and_long(engine: Engine) -> None:
    made = [make(engine, None) for _ in range(3)]
    assert {len(key.public) for key, _ in made} == {PUBLIC_LENGTH}
    assert {len(secret.text) for _, secret in made} == {SECRET_LENGTH}
    assert len({key.public for key, _ in made}) == len({secret.text for _, secret in made}) == 3
    assert all(secret.text.isalnum() for _, secret in made)


def test_the_same_secret_has_another_hash_each_time(engine: Engine) -> None:
    assert apikeys._hash(Secret("x")) != apikeys._hash(Secret("x"))
    key, _ = make(engine)
    assert key.secret_hash is not None
    assert key.secret_hash.startswith("scrypt$16384$8$1$")


def test_a_hash_of_other_parameters_is_still_understood(engine: Engine) -> None:
    key, _ = make(engine)
    expected = apikeys._scrypt(Secret("x"), b"salt", n=16, r=1, p=1)
    hashed = f"scrypt$16$1$1$c2FsdA==${b64encode(expected).decode()}"
    assert apikeys.is_secret(replace(key, secret_hash=hashed), Secret("x"))


def test_a_seal_tells_secrets_from_guesses(engine: Engine) -> None:
    key, secret = make(engine)
    seal = engine.store.seal
    assert apikeys.is_sealed(seal, key.public, secret)
    assert not apikeys.is_sealed(seal, "A" * PUBLIC_LENGTH, secret)
    assert not apikeys.is_sealed(bytes(32), key.public, secret)
    for guess in ("", "x", secret.text[:-1], f"{secret.text}x", "x" * SECRET_LENGTH, "ü" * SECRET_LENGTH):
        assert not apikeys.is_sealed(seal, key.public, Secret(guess))


def test_each_database_has_a_seal_of_its_own_that_stays(tmp_path: Path) -> None:
    seals = []
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        database = store.Store(tmp_path / name)
        seals.append(database.seal)
        database.close()
    assert seals[0] == seals[1] != seals[2]
    assert len(seals[0]) == 32


def test_a_name_is_of_one_live_key_only(engine: Engine) -> None:
    first, _ = make(engine)
    with pytest.raises(Exists, match=r"cannot create API key ci: API key 1c1 has that name"):
        make(engine)
    second, _ = make(engine, "second")
    with pytest.raises(Exists, match=r"cannot change API key second: API key 1c1 has that name"):
        apikeys.set_properties(engine, second.id, {"name": "ci"})
    apikeys.revoke(engine, first.id)
    assert apikeys.set_properties(engine, second.id, {"name": "ci"}).name == "ci"


def test_a_key_keeps_what_is_not_changed(engine: Engine) -> None:
    key, secret = make(engine)
    assert apikeys.set_properties(engine, key.id, {"description": "of the build"}).name == "ci"
    changed = apikeys.set_properties(engine, key.id, {"name": None})
    assert (changed.name, changed.description) == (None, "of the build")
    assert apikeys.is_secret(changed, secret)


def test_a_revoked_key_has_no_secret_and_stays_as_a_tombstone(engine: Engine) -> None:
    key, secret = make(engine)
    ended = apikeys.revoke(engine, key.id)
    assert ended.secret_hash is None
    assert not apikeys.is_secret(ended, secret)
    assert engine.store.api_key_of(key.public) is None
    assert engine.store.api_keys() == []
    assert engine.store.api_key(key.id) == ended
    gone = "API key 1c1: there is no such key, or it is revoked"
    with pytest.raises(NotFound, match=f"cannot remove {gone}"):
        apikeys.revoke(engine, key.id)
    with pytest.raises(NotFound, match=f"cannot change {gone}"):
        apikeys.set_properties(engine, key.id, {})


def test_tombstones_of_keys_go_after_two_days(engine: Engine) -> None:
    key, _ = make(engine)
    kept, _ = make(engine, "kept")
    apikeys.revoke(engine, key.id)
    upkeep.tidy(engine)
    assert engine.store.api_key(key.id) is not None
    upkeep.tidy(replace(engine, now=lambda: datetime.now(UTC) + timedelta(hours=49)))
    assert engine.store.api_key(key.id) is None
    assert engine.store.api_keys() == [kept]


def test_a_key_is_revoked_on_a_full_disk_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = make(engine)
    attempt = engine.store._attempt
    ballast = engine.root / "ballast"

    def full(change: Callable[[Write], object], *, is_synced: bool) -> object:
        if not ballast.exists():
            return attempt(change, is_synced=is_synced)
        err = sqlite3.OperationalError("database or disk is full")
        err.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise err

    monkeypatch.setattr(engine.store, "_attempt", full)
    with pytest.raises(Unusable):
        make(engine, "another")
    apikeys.revoke(engine, key.id)
    assert engine.store.api_keys() == []


def test_there_are_at_most_so_many_keys(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apikeys, "KEYS_MAX", 1)
    make(engine)
    with pytest.raises(InUse, match="cannot create API key second: there are 1 already; remove some"):
        make(engine, "second")


def test_keys_are_read_again_at_the_next_start(engine: Engine) -> None:
    keys = [make(engine)[0], make(engine, None, Role.READ_ONLY)[0]]
    apikeys.revoke(engine, make(engine, "gone")[0].id)
    again = store.Store(engine.root)
    assert again.api_keys() == keys
    assert again.reserve_id("apikeys") == 4
    again.close()


def test_two_keys_of_one_name_cannot_be_written(engine: Engine) -> None:
    key, _ = make(engine)
    twin = replace(key, id=model.ApiKeyId(9), public="OTHER")
    with pytest.raises(Exists):
        apikeys._put(engine, twin)
    assert engine.store.api_key_of("OTHER") is None


def test_a_secret_is_never_printed() -> None:
    secret = Secret("hidden")
    assert f"{secret} {secret!r} {[secret]}" == "*** *** [***]"


def test_the_hash_is_not_printed_with_its_key(engine: Engine) -> None:
    assert "scrypt" not in repr(make(engine)[0])


def test_the_tables_hold_no_place_for_a_secret(tmp_path: Path) -> None:
    store.Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / store.FILE_NAME)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(apikeys)")]
    connection.close()
    assert columns == [
        *("id", "uuid", "name", "description", "public", "secret_hash", "role", "created_at", "removed_at")
    ]
