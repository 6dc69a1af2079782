"""Hashes of passwords, with the parameters of production."""

import asyncio
import time

from app.user import passwords


async def test_nobodys_hash_opens_for_nothing() -> None:
    assert not await passwords.verify_password(None, "")
    assert not await passwords.verify_password(None, "anything")
    assert not await passwords.verify_password("not a hash", "anything")
    assert not passwords.needs_rehash(passwords.NOBODYS_HASH)  # made as everybody's


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
