"""Password hashes of Flask-Bcrypt, Werkzeug and Django, and their replacement at the next login."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import bcrypt
import pytest
from argon2 import PasswordHasher
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select, update
from werkzeug.security import generate_password_hash

from app.adopt import hashes
from app.user import passwords
from app.user.models import UNUSABLE_HASH, User
from tests.features.factories import Person, new_client

PASSWORD = "correct horse battery é"
DECOMPOSED = "correct horse battery e\u0301"

# Made by Django 5.2 with its default parameters.
DJANGO = (
    "pbkdf2_sha256$1000000$PxiP3gFxMRjhju8svkYKzY$P6BU50Gg0C0zqbbYv3fM9gOud1xystH7We1mo+VK3cM=",
    "pbkdf2_sha1$1000000$RizolSezp5IuAKLYQhvLA7$9yRNwadyeEDcP05j+3UNfJYX8GA=",
    "argon2$argon2id$v=19$m=102400,t=2,p=8$bndoaVBSNkE3TzBzclNXMEJVRlA0eQ"
    "$2R1K3Avo0D2bXOajBd3TI6+hJrgclTnf9Ex6BW4ILPI",
    "bcrypt_sha256$$2b$12$UMRjF3oYbN8ZmxhVKrsQ5uhMPQl0f9Ybcdt6XAG34IzRob2aKKUb.",
    "bcrypt$$2b$12$iHGJvaYPlC.BagFKv0jwbOHnTDa7dlncXxZPMW/McdP2XqBlsXlKS",
    "scrypt$16384$7ZJnWVgjeinLTGU9HHQIcz$8$5$Zd03iKeu9Zq69nr+33gcPbfTTp/z6ZiYmJ1csrAz7ucrW08YZeGu"
    "BO/COGOtAb3c6eHEBt9OgFgrrNlJoCPL5A==",
)


def bcrypt_hash(password: str, prefix: bytes = b"2b") -> str:
    hashed: bytes = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4, prefix))
    return hashed.decode()


OLD = {
    "bcrypt": bcrypt_hash(PASSWORD),
    "bcrypt 2a": bcrypt_hash(PASSWORD, b"2a"),
    "bcrypt 2y": bcrypt_hash(PASSWORD).replace("$2b$", "$2y$"),
    "werkzeug scrypt": generate_password_hash(PASSWORD),
    "werkzeug pbkdf2": generate_password_hash(PASSWORD, "pbkdf2"),
    "werkzeug pbkdf2 sha512": generate_password_hash(PASSWORD, "pbkdf2:sha512:1000"),
    "argon2 of another application": PasswordHasher(time_cost=1, memory_cost=8192).hash(PASSWORD),
    **{each.partition("$")[0] + " django": each for each in DJANGO},
}


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_old_hash_is_verified(old: str) -> None:
    assert hashes.find_kind(old) is not None
    assert hashes.verify(old, PASSWORD) is True
    assert hashes.verify(old, "not the password") is False
    assert hashes.verify(old, "") is False
    # Another keyboard: the normal form is tried as well.
    assert hashes.verify(old, DECOMPOSED) is True
    assert passwords.needs_rehash(old)


def test_password_is_verified_as_it_was_typed() -> None:
    """The old application did not normalize passwords before hashing."""
    assert hashes.verify(bcrypt_hash(DECOMPOSED), DECOMPOSED) is True


def test_bcrypt_ignores_bytes_beyond_the_72nd() -> None:
    """As the versions of bcrypt did that Flask-Bcrypt used before version 5."""
    long = "x" * 100
    assert hashes.verify(bcrypt_hash(long), long) is True
    assert hashes.verify(bcrypt_hash(long), "x" * 71) is False
    assert hashes.verify(bcrypt_hash("nul"), "nul\x00") is False
    assert hashes.verify(bcrypt_hash("any"), "\udcff") is False


@pytest.mark.parametrize(
    "unknown",
    [
        "",
        "!",
        "sanitized",
        "plaintext",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "sha1$salt$5f4dcc3b5aa765d61d8327deb882cf99",
        "pbkdf2:md5:1000$salt$00",
        "$2b$12$tooshort",
        "$argon2id$broken",
        "x" * 300,
        # Parameters that would take minutes or gigabytes.
        f"$2b$31${'x' * 53}",
        "pbkdf2:sha256:999999999$salt$00ff",
        "pbkdf2_sha256$999999999$salt$AAAA",
        f"scrypt:1073741824:8:1$salt${'0' * 128}",
        f"scrypt:32768:8:999999$salt${'0' * 128}",
        f"scrypt:32767:8:1$salt${'0' * 128}",
        "scrypt$1073741824$salt$8$1$AAAA",
        "argon2$argon2id$v=19$m=99999999,t=2,p=8$bndoaVBSNkE3$2R1K3Avo0D2bXOajBd3T",
    ],
)
def test_unknown_kind_is_not_verified(unknown: str) -> None:
    started = time.monotonic()
    assert hashes.find_kind(unknown) is None
    assert hashes.verify(unknown, PASSWORD) is None
    assert time.monotonic() - started < 10


async def set_hash(app: Quart, person: Person, password_hash: str) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(
            update(User).where(User.username == person.username).values(password_hash=password_hash)
        )


async def get_hash(app: Quart, person: Person) -> str:
    async with app.extensions["quart_upsun"].database.read() as session:
        found: str | None = await session.scalar(
            select(User.password_hash).where(User.username == person.username)
        )
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["bcrypt", "werkzeug scrypt", "pbkdf2_sha256 django"])
async def test_login_replaces_old_hash(app: Quart, client: Client, name: str) -> None:
    ada = await Person(password=PASSWORD).register(app)
    await set_hash(app, ada, OLD[name])
    wrong = {"username": ada.username, "password": "wrong one"}
    assert (await client.post("/login/", form=wrong)).status_code == 200
    assert await get_hash(app, ada) == OLD[name]
    await ada.log_in(client)
    new = await get_hash(app, ada)
    assert not passwords.needs_rehash(new)
    await ada.log_in(new_client(app))
    assert await get_hash(app, ada) == new


async def test_login_accepts_decomposed_password_of_the_old_application(
    app: Quart, client: Client
) -> None:
    """The old application hashed what a keyboard sent; the new hash is of the normal form."""
    ada = await Person(password=DECOMPOSED).register(app)
    await set_hash(app, ada, bcrypt_hash(DECOMPOSED))
    await ada.log_in(client)
    assert await passwords.verify_password(await get_hash(app, ada), PASSWORD)


async def test_concurrent_logins_replace_old_hash(app: Quart) -> None:
    ada = await Person(password=PASSWORD).register(app)
    await set_hash(app, ada, OLD["bcrypt"])
    clients = [new_client(app) for _ in range(4)]
    await asyncio.gather(*(ada.log_in(client) for client in clients))
    for client in clients:
        assert (await client.get("/users/")).status_code == 200
    assert not passwords.needs_rehash(await get_hash(app, ada))


async def test_account_page_accepts_old_hash(app: Quart, client: Client) -> None:
    ada = await Person(password=PASSWORD).register(app)
    await ada.log_in(client)
    await set_hash(app, ada, OLD["werkzeug pbkdf2"])
    data = {"current_password": PASSWORD, "password": "another horse", "confirm": "another horse"}
    assert (await client.post("/account/password/", form=data)).status_code == 303
    assert not passwords.needs_rehash(await get_hash(app, ada))


async def test_failed_logins_do_the_same_work(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts verifications instead of measuring time, for each kind of account and for none."""
    people = [await Person(name).register(app) for name in ("ada", "bert", "cleo", "dora")]
    stored = (OLD["bcrypt"], OLD["werkzeug scrypt"], UNUSABLE_HASH)
    for person, password_hash in zip(people, stored, strict=False):
        await set_hash(app, person, password_hash)
    done: list[str] = []

    def record(name: str, verify: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            result = verify(*arguments)
            if result is not None:  # else the kind was unknown, and took no time
                done.append(hashes.kind_of(arguments[0]) if name == "old" else name)
            return result

        return recorded

    monkeypatch.setattr(hashes, "verify", record("old", hashes.verify))
    monkeypatch.setattr(
        passwords,
        "verify_password_blocking",
        record("argon2id", passwords.verify_password_blocking),
    )
    work = []
    for username in (*(person.username for person in people), "nobody", "no such name!"):
        await app.test_client().post(
            "/login/", form={"username": username, "password": "not the password"}
        )
        work.append(sorted(done))
        done.clear()
    assert work == [["$2b$04$", "argon2id", "scrypt:"]] * 6
