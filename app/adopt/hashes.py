"""Verify password hashes of Flask-Bcrypt, Werkzeug and Django.

A login with one of them replaces it with an argon2id hash. While accounts with such hashes exist,
each failed login verifies a hash of every kind, so that the response time does not reveal which
accounts exist.
"""

import asyncio
import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import bcrypt
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import ColumnElement, and_, func, not_, select
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.security import check_password_hash

from app.user import passwords
from app.user.models import UNUSABLE_HASH, User
from quart_upsun.database import Database

# A hash with higher parameters is not verified: it would take seconds, or the container's memory.
# The limits are at least twice the defaults of Flask-Bcrypt, Werkzeug 3 and Django 6.
MAX_BCRYPT_ROUNDS = 15
MAX_ITERATIONS = 3_000_000
MAX_MEMORY_BYTES = 128 * 2**20
MAX_PASSES = 10

HASH_LENGTH = 255  # of the column users.password_hash
BCRYPT_BYTES = 72  # older versions of bcrypt ignored the rest, newer ones refuse it
SAMPLES_REFRESH_SECONDS = 600
MAX_KINDS = 4
KIND_LENGTH = len("$2b$12$")

Verify = Callable[[str, bytes], bool]


def _verify_bcrypt(password_hash: str, password: bytes) -> bool:
    return bcrypt.checkpw(password[:BCRYPT_BYTES], password_hash.encode())


def _verify_bcrypt_sha256(password_hash: str, password: bytes) -> bool:
    """Verify Django's hash. Flask-Bcrypt's BCRYPT_HANDLE_LONG_PASSWORDS computes the same."""
    digest = hashlib.sha256(password).hexdigest().encode()
    return bcrypt.checkpw(digest, password_hash.encode())


def _verify_werkzeug(password_hash: str, password: bytes) -> bool:
    return check_password_hash(password_hash, password.decode())


def _verify_django_pbkdf2(password_hash: str, password: bytes) -> bool:
    algorithm, iterations, salt, digest = password_hash.split("$")
    computed = hashlib.pbkdf2_hmac(
        algorithm.removeprefix("pbkdf2_"), password, salt.encode(), int(iterations)
    )
    return _equals_base64(computed, digest)


def _verify_django_scrypt(password_hash: str, password: bytes) -> bool:
    _, n, salt, r, p, digest = password_hash.split("$")
    computed = hashlib.scrypt(
        password,
        salt=salt.encode(),
        n=int(n),
        r=int(r),
        p=int(p),
        maxmem=2 * MAX_MEMORY_BYTES,
        dklen=64,
    )
    return _equals_base64(computed, digest)


def _verify_argon2(password_hash: str, password: bytes) -> bool:
    try:
        return PasswordHasher().verify(password_hash, password)
    except VerificationError:
        return False


def _equals_base64(computed: bytes, digest: str) -> bool:
    return hmac.compare_digest(base64.b64encode(computed).decode(), digest)


@dataclass(frozen=True)
class Kind:
    """The kind of a hash.

    Attributes:
        name: what a report calls it.
        matches: tells whether a password matches the hash.
    """

    name: str
    matches: Callable[[bytes], bool]


def find_kind(password_hash: str) -> Kind | None:
    """Return the kind of a hash, or None if it is unknown.

    It is unknown, too, if the hash is malformed or its parameters exceed the limits.
    """
    if len(password_hash) > HASH_LENGTH:
        return None
    for name, pattern, is_allowed, prefix, verify in KINDS:
        if found := re.fullmatch(pattern, password_hash):
            if not is_allowed(*found.groups()):
                return None
            return Kind(name, partial(verify, password_hash.removeprefix(prefix)))
    return None


def _allows_bcrypt(rounds: str) -> bool:
    return int(rounds) <= MAX_BCRYPT_ROUNDS


def _allows_iterations(iterations: str) -> bool:
    return 0 < int(iterations) <= MAX_ITERATIONS


def _allows_scrypt(n: str, r: str, p: str) -> bool:
    cost, block, parallel = int(n), int(r), int(p)
    return (
        cost > 1
        and cost & (cost - 1) == 0
        and block > 0
        and 0 < parallel <= MAX_PASSES
        and 128 * cost * block <= MAX_MEMORY_BYTES
    )


def _allows_argon2(password_hash: str) -> bool:
    try:
        parameters = extract_parameters(password_hash)
    except InvalidHashError:
        return False
    return parameters.memory_cost * 1024 <= MAX_MEMORY_BYTES and parameters.time_cost <= MAX_PASSES


_BCRYPT = r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{53}"
_NUMBER = r"(\d{1,9})"
# The name of a kind, the pattern of its hashes, whether their parameters are within the limits,
# Django's prefix, the verification.
KINDS: Sequence[tuple[str, str, Callable[..., bool], str, Verify]] = (
    ("bcrypt", _BCRYPT, _allows_bcrypt, "", _verify_bcrypt),
    ("bcrypt", rf"bcrypt\${_BCRYPT}", _allows_bcrypt, "bcrypt$", _verify_bcrypt),
    (
        "bcrypt of SHA-256",
        rf"bcrypt_sha256\${_BCRYPT}",
        _allows_bcrypt,
        "bcrypt_sha256$",
        _verify_bcrypt_sha256,
    ),
    (
        "scrypt",
        rf"scrypt:{_NUMBER}:{_NUMBER}:{_NUMBER}\$[^$]+\$[0-9a-f]{{128}}",
        _allows_scrypt,
        "",
        _verify_werkzeug,
    ),
    (
        "PBKDF2",
        rf"pbkdf2:sha(?:1|256|512):{_NUMBER}\$[^$]+\$[0-9a-f]+",
        _allows_iterations,
        "",
        _verify_werkzeug,
    ),
    (
        "PBKDF2",
        rf"pbkdf2_sha(?:1|256)\${_NUMBER}\$[^$]+\$[A-Za-z0-9+/=]+",
        _allows_iterations,
        "",
        _verify_django_pbkdf2,
    ),
    (
        "scrypt",
        rf"scrypt\${_NUMBER}\$[^$]+\${_NUMBER}\${_NUMBER}\$[A-Za-z0-9+/=]+",
        _allows_scrypt,
        "",
        _verify_django_scrypt,
    ),
    ("argon2", r"argon2(\$argon2id?\$.+)", _allows_argon2, "argon2", _verify_argon2),
    ("argon2", r"(\$argon2id?\$.+)", _allows_argon2, "", _verify_argon2),
)


def verify(password_hash: str, password: str) -> bool | None:
    """Return whether a password matches an old hash, or None if its kind is unknown.

    The old application hashed the password as it was typed. The normal form is tried as well,
    because another keyboard may compose characters differently.
    """
    kind = find_kind(password_hash)
    if kind is None or not passwords.needs_rehash(password_hash):
        return None
    forms = dict.fromkeys((password, passwords.normalize_password(password)))
    try:
        return any(kind.matches(form.encode()) for form in forms)
    except UnicodeEncodeError:  # a lone surrogate
        return False


class OldHashes:
    """Verifies the passwords of adopted accounts.

    Args:
        database: the database with the accounts.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._samples: Sequence[str] = ()
        self._read_at = float("-inf")

    async def verify_password(self, password_hash: str | None, password: str) -> bool:
        """Verify a password; see `app.user.passwords.verify_password`."""
        samples = await self._read_samples()
        return await asyncio.get_running_loop().run_in_executor(
            passwords.EXECUTOR, verify_like_all, password_hash, password, samples
        )

    async def _read_samples(self) -> Sequence[str]:
        before = self._read_at
        if time.monotonic() - before > SAMPLES_REFRESH_SECONDS:
            self._read_at = time.monotonic()  # concurrent logins do not repeat the query
            try:
                async with self._database.read() as session:
                    self._samples = await find_samples(session)
            except BaseException:
                self._read_at = before
                raise
        return self._samples


def verify_like_all(password_hash: str | None, password: str, samples: Sequence[str]) -> bool:
    """Verify a password; if it is wrong, do the same work for each account, and for none.

    Args:
        password_hash: the hash of the account; None if it does not exist.
        password: the password.
        samples: a hash of each old kind that accounts have.
    """
    is_right = verify(password_hash, password) if password_hash else None
    if is_right is None:  # an argon2id hash of this application, or no account
        is_right = passwords.verify_password_blocking(password_hash, password)
        own = ""
    else:
        own = kind_of(password_hash or "")
        if not is_right:
            passwords.verify_password_blocking(None, password)
    if not is_right:
        for sample in samples:
            if kind_of(sample) != own:
                verify(sample, password)
    return is_right


def kind_of(password_hash: str) -> str:
    """Return a text that hashes of one kind share. For bcrypt, it includes the cost."""
    return password_hash[:KIND_LENGTH]


async def find_samples(session: AsyncSession) -> Sequence[str]:
    """Return one hash of each old kind that active accounts have, the most frequent kinds first."""
    kind = func.left(User.password_hash, KIND_LENGTH)
    query = (
        select(func.min(User.password_hash))
        .where(is_old(), User.deactivated_at.is_(None))
        .group_by(kind)
        .order_by(func.count().desc())
        .limit(MAX_KINDS)
    )
    return [each for each in await session.scalars(query) if each is not None]


def is_old() -> ColumnElement[bool]:
    """Return the SQL condition for accounts whose hash is replaced at the next login."""
    # The hashes of this application begin like this one: with the algorithm and its parameters.
    own, _, _ = passwords.DUMMY_HASH.rpartition("$")[0].rpartition("$")
    return and_(
        not_(User.password_hash.startswith(own, autoescape=True)),
        User.password_hash != UNUSABLE_HASH,
    )
