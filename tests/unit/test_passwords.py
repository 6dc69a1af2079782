"""Password hashing and password rules, with production parameters."""

import asyncio
import time

from app.user import passwords


async def test_missing_or_invalid_hash_never_matches() -> None:
    assert not await passwords.verify_password(None, "")
    assert not await passwords.verify_password(None, "anything")
    assert not await passwords.verify_password("not a hash", "anything")
    assert not passwords.needs_rehash(passwords.DUMMY_HASH)  # takes as long as a real hash


async def test_hashing_does_not_block_the_event_loop() -> None:
    iterations = 0

    async def other_work() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other_work())
    started = time.perf_counter()
    await asyncio.gather(*(passwords.hash_password("correct horse") for _ in range(4)))
    task.cancel()
    assert iterations > 50, f"{iterations} iterations in {time.perf_counter() - started:.2f} s"


async def test_unicode_composition_does_not_matter() -> None:
    composed, decomposed = "caf\u00e9 \u1e9b\u0323 horse", "cafe\u0301 \u017f\u0323\u0307 horse"
    assert composed != decomposed
    for typed, again in ((composed, decomposed), (decomposed, composed)):
        password_hash = await passwords.hash_password(typed)
        assert await passwords.verify_password(password_hash, again)
    # Length checks and the comparison with the username use the same normalization.
    assert passwords.find_problem("e\u0301" * 6) is not None
    assert passwords.find_problem("re\u0301sume\u0301-name", "R\u00e9sum\u00e9-Name") is not None


def test_common_passwords_are_rejected_in_every_form() -> None:
    assert passwords.find_problem("password123") is not None
    assert passwords.find_problem("ｐａｓｓｗｏｒｄ１２３") is not None  # noqa: RUF001
    assert passwords.find_problem("correct horse \udcff") == "Use only valid Unicode characters."


async def test_all_kinds_of_spaces_are_equal() -> None:
    password_hash = await passwords.hash_password("correct\u00a0horse\u3000battery")
    assert await passwords.verify_password(password_hash, "correct horse battery")
    longest = "\u00e9" * passwords.MAX_LENGTH
    password_hash = await passwords.hash_password(longest)
    assert await passwords.verify_password(password_hash, "e\u0301" * passwords.MAX_LENGTH)
