"""`quart user remove-passkeys`, for users who have lost them."""

import click
from sqlalchemy.ext.asyncio import AsyncSession

from app.user.commands import find_user, print_result, run_in_transaction
from app.user.passkeys import queries


@click.command("remove-passkeys")
@click.argument("username")
def remove_passkeys(username: str) -> None:
    """Remove all passkeys of a user who has lost them, and end all sessions.

    The user can then log in with the password alone, or with another second factor.
    """

    async def work(session: AsyncSession) -> int:
        return await queries.remove_all_passkeys(session, await find_user(session, username))

    count = run_in_transaction(work)
    print_result(f"Removed {count} passkey{'' if count == 1 else 's'} of {username}.")
