"""Encryption at rest, and the rotation of its keys."""

from collections.abc import AsyncIterator

import pytest
from quart import Quart

from quart_upsun.security import encryption
from quart_upsun.security.encryption import DecryptionError

OLD, NEW = "a key that was used before", "a key that is used now"


@pytest.fixture
async def app() -> AsyncIterator[Quart]:
    app = Quart(__name__)
    app.config["ENCRYPTION_KEYS"] = [OLD]
    async with app.app_context():
        yield app


async def test_decrypts_what_was_encrypted(app: Quart) -> None:
    token = encryption.encrypt("secrets", b"\x00 any bytes \xff")
    assert b"any bytes" not in token
    assert encryption.decrypt("secrets", token) == b"\x00 any bytes \xff"


async def test_equal_data_has_different_tokens(app: Quart) -> None:
    assert encryption.encrypt("secrets", b"a") != encryption.encrypt("secrets", b"a")


async def test_tokens_are_bound_to_their_purpose(app: Quart) -> None:
    token = encryption.encrypt("secrets 1", b"a")
    with pytest.raises(DecryptionError):
        encryption.decrypt("secrets 2", token)


async def test_changed_tokens_are_rejected(app: Quart) -> None:
    token = encryption.encrypt("secrets", b"a")
    middle = len(token) // 2
    changed = token[:middle] + bytes([token[middle] ^ 1]) + token[middle + 1 :]
    for each in (changed, token[:-8], b"", "ä".encode()):
        with pytest.raises(DecryptionError):
            encryption.decrypt("secrets", each)


async def test_previous_keys_decrypt_and_the_current_key_encrypts(app: Quart) -> None:
    old = encryption.encrypt("secrets", b"a")
    app.config["ENCRYPTION_KEYS"] = [NEW, OLD]
    assert encryption.decrypt("secrets", old) == b"a"
    new = encryption.encrypt("secrets", b"b")
    rotated = encryption.rotate("secrets", old)
    app.config["ENCRYPTION_KEYS"] = [NEW]
    assert encryption.decrypt("secrets", new) == b"b"
    assert encryption.decrypt("secrets", rotated) == b"a"
    with pytest.raises(DecryptionError):
        encryption.decrypt("secrets", old)
