"""What the tests of all features have in common."""

import pytest
from argon2 import PasswordHasher

from app.user import passwords

# argon2's least. Nearly every test has somebody who registers and logs in, and that would be most
# of its time.
QUICK = PasswordHasher(memory_cost=8, time_cost=1, parallelism=1)
NOBODYS = QUICK.hash(b"")


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords with little work; tests/unit/test_passwords.py does it as in production."""
    monkeypatch.setattr(passwords, "HASHER", QUICK)
    monkeypatch.setattr(passwords, "NOBODYS_HASH", NOBODYS)
