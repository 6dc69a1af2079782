"""Encryption at rest: secrets that the application must read again, such as keys of other systems.

What only needs to be compared, such as a password or an access token, is hashed instead.

The keys are derived from SECRET_KEY and SECRET_KEY_FALLBACKS, and differ for each environment and
purpose. A dump of the database is therefore useless without the variables. Tokens are Fernet's:
AES-128-CBC with HMAC-SHA256, https://github.com/fernet/spec/blob/master/Spec.md
"""

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING

from quart import current_app

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet


class DecryptionError(Exception):
    """The token was encrypted with another key or for another purpose, or it was changed."""


def encrypt(purpose: str, data: bytes) -> bytes:
    """Encrypt with the current key.

    Args:
        purpose: what the data is and whose, such as `two-factor 42`. It cannot be decrypted for
            another purpose, so a row cannot be passed off as that of another user.
        data: the plain bytes.

    Returns:
        A token of ASCII characters, a third longer than `data` and 100 bytes.
    """
    return _fernet(purpose).encrypt(data)


def decrypt(purpose: str, token: bytes) -> bytes:
    """Decrypt with the current key or one of the previous keys.

    Raises:
        DecryptionError: no key fits.
    """
    from cryptography.fernet import InvalidToken

    try:
        return _fernet(purpose).decrypt(token)
    except InvalidToken:
        raise DecryptionError from None


def rotate(purpose: str, token: bytes) -> bytes:
    """Encrypt the content of a token again, with the current key.

    Raises:
        DecryptionError: no key fits.
    """
    return encrypt(purpose, decrypt(purpose, token))


def _fernet(purpose: str) -> "MultiFernet":
    # Imported here because the library takes 10 MB, which an idle process does not need.
    from cryptography.fernet import Fernet, MultiFernet

    keys = (
        hmac.digest(key.encode(), purpose.encode(), hashlib.sha256)
        for key in current_app.config["ENCRYPTION_KEYS"]
    )
    # MultiFernet encrypts with the first key, and decrypts with all of them.
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])
