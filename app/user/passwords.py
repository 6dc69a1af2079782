"""Password rules, and argon2id hashing in a small thread pool."""

import asyncio
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MIN_LENGTH, MAX_LENGTH = 10, 1024
SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
SURROGATES = re.compile("[\ud800-\udfff]")
COMMON_PASSWORDS_FILE = Path(__file__).with_name("common_passwords.txt")

# OWASP's parameters for small machines: 19 MiB, two passes, one lane. argon2's own default of
# 64 MiB would let five logins at once fill a small container.
# https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
HASHER = PasswordHasher(memory_cost=19 * 1024, time_cost=2, parallelism=1)

# Two threads limit the memory (40 MiB) and leave CPU time for the event loop. Further calls wait in
# the executor's queue.
EXECUTOR = ThreadPoolExecutor(max_workers=2, thread_name_prefix="passwords")

# Verified when the user is unknown, so that the response time does not reveal whether an account
# exists.
DUMMY_HASH = HASHER.hash(b"")


def find_problem(password: str, *personal: str | None) -> str | None:
    """Return why a password is rejected, or None if it is acceptable.

    Args:
        password: the new password.
        personal: the user's name and email addresses, which are easy to guess.
    """
    password = normalize_password(password)
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        return f"Use {MIN_LENGTH} to {MAX_LENGTH} characters."
    if SURROGATES.search(password):  # from a terminal with a different character set
        return "Use only valid Unicode characters."
    plain = unicodedata.normalize("NFKC", password).strip().lower()
    if plain in _common_passwords() or len(set(plain)) < 3:
        return "This password is too common. Choose a different one."
    if plain in {normalize_password(each).lower() for each in personal if each}:
        return "Choose a password that is not your username or email address."
    return None


def normalize_password(password: str) -> str:
    """Normalize a password to Unicode NFC with plain spaces, because keyboards differ.

    https://pages.nist.gov/800-63-4/sp800-63b.html#passwordver and RFC 8265, OpaqueString
    """
    # Normalizing a very long text is slow, and it is rejected anyway.
    if password.isascii() or len(password) > 2 * MAX_LENGTH:
        return password
    return unicodedata.normalize("NFC", SPACES.sub(" ", password))


async def hash_password(password: str) -> str:
    """Return the argon2id hash of `password` in PHC string format."""
    return await asyncio.get_running_loop().run_in_executor(
        EXECUTOR, hash_password_blocking, password
    )


def hash_password_blocking(password: str) -> str:
    """Hash a password and block for about 30 ms. For the command line."""
    return HASHER.hash(normalize_password(password))


async def verify_password(password_hash: str | None, password: str) -> bool:
    """Return whether `password` matches `password_hash`.

    If `password_hash` is None (unknown user), return False after the same amount of work.
    """
    return await asyncio.get_running_loop().run_in_executor(
        EXECUTOR, verify_password_blocking, password_hash, password
    )


def verify_password_blocking(password_hash: str | None, password: str) -> bool:
    """Verify a password, and block for about 30 ms, also if the hash is missing or invalid."""
    password = normalize_password(password)
    try:
        return HASHER.verify(password_hash or DUMMY_HASH, password) and password_hash is not None
    except InvalidHashError:
        with suppress(VerificationError):
            HASHER.verify(DUMMY_HASH, password)
    except VerificationError:
        pass
    return False


def needs_rehash(password_hash: str) -> bool:
    """Return whether the hash was created with outdated parameters or by another application."""
    try:
        return HASHER.check_needs_rehash(password_hash)
    except InvalidHashError:
        return True


@cache
def _common_passwords() -> frozenset[str]:
    lines = COMMON_PASSWORDS_FILE.read_text().splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
