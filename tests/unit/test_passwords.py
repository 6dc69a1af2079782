"""Hashes of passwords, with the parameters of production."""

import asyncio
import time

from app.user import passwords


async def test_nobodys_hash_opens_for_nothing() -> None:
    assert not await passwords.verify_password(None, "")
    assert not await passwords.verify_password(None, "anything")
    assert not await passwords.verify_password("not a hash", "anything")
    assert not passwords.needs_rehash(passwords.DUMMY_HASH)  # made as everybody's


async def test_hashing_leaves_the_event_loop_free() -> None:
    """While passwords are hashed, other things on the loop get their turn."""
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other_work())
    started = time.perf_counter()
    await asyncio.gather(*(passwords.hash_password("correct horse") for _ in range(4)))
    task.cancel()
    assert turns > 50, f"{turns} turns in {time.perf_counter() - started:.2f} s"


async def test_a_password_is_the_same_however_its_letters_are_composed() -> None:
    composed, decomposed = "caf\u00e9 \u1e9b\u0323 horse", "cafe\u0301 \u017f\u0323\u0307 horse"
    assert composed != decomposed
    for typed, again in ((composed, decomposed), (decomposed, composed)):
        password_hash = await passwords.hash_password(typed)
        assert await passwords.verify_password(password_hash, again)
    # Lengths are of the same form, and so are the names that a password must not be.
    assert passwords.find_problem("e\u0301" * 6) is not None
    assert passwords.find_problem("re\u0301sume\u0301-name", "R\u00e9sum\u00e9-Name") is not None


def test_the_first_passwords_that_are_tried_are_refused_in_any_form() -> None:
    assert passwords.find_problem("password123") is not None
    assert passwords.find_problem("ｐａｓｓｗｏｒｄ１２３") is not None  # noqa: RUF001
    assert passwords.find_problem("correct horse \udcff") == "Use only valid Unicode characters."


async def test_spaces_of_any_kind_are_the_same() -> None:
    password_hash = await passwords.hash_password("correct\u00a0horse\u3000battery")
    assert await passwords.verify_password(password_hash, "correct horse battery")
    longest = "\u00e9" * passwords.MAX_LENGTH
    password_hash = await passwords.hash_password(longest)
    assert await passwords.verify_password(password_hash, "e\u0301" * passwords.MAX_LENGTH)
