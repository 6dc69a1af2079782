"""Passwords: which are refused; their hashes: argon2id, off the event loop, few at a time."""

import asyncio
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
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

# Two threads bound the memory (40 MiB) and leave the event loop its share of the processor;
# whoever comes third waits in the executor's queue.
_executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="argon2")

# Made with the parameters above, of a password nobody knows: an unknown user costs as much as a
# wrong password, so the time of an answer does not tell who has an account.
DUMMY_HASH = HASHER.hash(b"")


def find_problem(password: str, *personal: str | None) -> str | None:
    """Say why a password is refused; None if it is not.

    Args:
        password: what somebody wants to have.
        personal: what everybody would try first: the user's name and address.
    """
    password = normalize_password(password)
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        return f"Between {MIN_LENGTH} and {MAX_LENGTH} characters."
    if SURROGATES.search(password):  # from a terminal with another character set
        return "The password must be valid Unicode text."
    plain = unicodedata.normalize("NFKC", password).strip().lower()
    if plain in _common_passwords() or len(set(plain)) < 3:
        return "This password is one of the first that are tried. Choose another."
    if plain in {normalize_password(each).lower() for each in personal if each}:
        return "Choose a password that is neither your user name nor your address."
    return None


def normalize_password(password: str) -> str:
    """Return a password in Unicode's NFC, with plain spaces: keyboards send different bytes.

    https://pages.nist.gov/800-63-4/sp800-63b.html#passwordver and RFC 8265, OpaqueString
    """
    # Of what is too long in any form, the form would take long to find out.
    if password.isascii() or len(password) > 2 * MAX_LENGTH:
        return password
    return unicodedata.normalize("NFC", SPACES.sub(" ", password))


async def hash_password(password: str) -> str:
    """Return the argon2id hash of `password` in PHC string format."""
    return await asyncio.get_running_loop().run_in_executor(
        _executor, hash_password_blocking, password
    )


def hash_password_blocking(password: str) -> str:
    """Return what `hash_password` does, for the command line: it blocks for about 30 ms."""
    return HASHER.hash(normalize_password(password))


async def verify_password(password_hash: str | None, password: str) -> bool:
    """Tell whether `password` belongs to `password_hash`.

    None stands for an unknown user: False, after the same work.
    """
    return await asyncio.get_running_loop().run_in_executor(
        _executor, _verify, password_hash, password
    )


def needs_rehash(password_hash: str) -> bool:
    """Tell whether the hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(password_hash)


@cache
def _common_passwords() -> frozenset[str]:
    lines = COMMON_PASSWORDS_FILE.read_text().splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def _verify(password_hash: str | None, password: str) -> bool:
    try:
        HASHER.verify(password_hash or DUMMY_HASH, normalize_password(password))
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None
