"""Recovery codes, each of which replaces a code of the authenticator app once.

A code has 120 random bits, more than the 112 from which OWASP ASVS 5.0 (6.5.2) and NIST SP 800-63B
(3.1.2.2) accept a plain hash: guessing one takes as long with SHA-256 as with argon2id, so a slow
hash would add nothing, and ten of them would be slow to verify. No key is needed either, so the
codes still work if SECRET_KEY is lost and the secrets of the apps can no longer be decrypted.
"""

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Sequence

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.user.two_factor.models import RecoveryCode

COUNT = 10
# Crockford's base32, without letters that look like digits: https://www.crockford.com/base32.html
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LENGTH, GROUP = 24, 4
LOOKALIKES = str.maketrans("OIL", "011")


def generate() -> str:
    """Generate a random code, in groups separated by hyphens."""
    code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
    return "-".join(re.findall(f".{{{GROUP}}}", code))


def normalize(text: str) -> str | None:
    """Return the characters of a code as it was typed; None if it is not a code.

    Case, spaces and hyphens are ignored, and letters are read as the digits that they look like.
    """
    text = unicodedata.normalize("NFKC", text[:128]).upper()
    code = re.sub(r"[\W_]", "", text).translate(LOOKALIKES)
    return code if len(code) == LENGTH and set(code) <= set(ALPHABET) else None


def hash_code(code: str) -> bytes:
    """Return the SHA-256 digest under which a normalized code is stored."""
    return hashlib.sha256(code.encode()).digest()


async def replace(session: AsyncSession, user_id: int) -> Sequence[str]:
    """Replace all codes of a user, and return the new ones. Only their digests are stored.

    The caller holds a lock on the secret of the user, so that concurrent requests do not add up.
    """
    codes = [generate() for _ in range(COUNT)]
    await delete_all(session, user_id)
    await session.execute(
        insert(RecoveryCode),
        [{"user_id": user_id, "digest": hash_code(code.replace("-", ""))} for code in codes],
    )
    return codes


async def delete_all(session: AsyncSession, user_id: int) -> None:
    await session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))


async def use(session: AsyncSession, user_id: int, code: str) -> bool:
    """Mark a normalized code as used; return False if the user has no such unused code.

    Of concurrent requests with the same code, one gets True.
    """
    used = (
        update(RecoveryCode)
        .where(
            RecoveryCode.user_id == user_id,
            RecoveryCode.digest == hash_code(code),
            RecoveryCode.used_at.is_(None),
        )
        .values(used_at=func.now())
        .returning(RecoveryCode.user_id)
    )
    return await session.scalar(used) is not None


async def count_unused(session: AsyncSession, user_id: int) -> int:
    """Return how many codes a user has left."""
    unused = select(func.count()).where(
        RecoveryCode.user_id == user_id, RecoveryCode.used_at.is_(None)
    )
    return await session.scalar(unused) or 0
