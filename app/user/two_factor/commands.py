"""Commands for operators: help a user whose device is lost, and retire a previous key."""

import click
from sqlalchemy.ext.asyncio import AsyncSession

from app.user.commands import find_user, group, print_result, run_in_transaction
from app.user.two_factor import enrolment


def init_app() -> None:
    """Add the commands to `quart user`."""
    group.add_command(disable)
    group.add_command(reencrypt)


@click.command("disable-two-factor")
@click.argument("username")
def disable(username: str) -> None:
    """Turn off two-factor authentication of a user who lost the device, and end all sessions."""

    async def work(session: AsyncSession) -> None:
        user = await find_user(session, username)
        try:
            await enrolment.disable_for(session, user)
        except enrolment.NotEnabledError:
            raise click.ClickException(
                f"{username} has not turned on two-factor authentication."
            ) from None

    run_in_transaction(work)
    print_result(f"{username} can now log in without a code.")


@click.command("reencrypt-two-factor")
def reencrypt() -> None:
    """Encrypt all secrets of authenticator apps with the current SECRET_KEY.

    Afterwards the previous key can be removed from SECRET_KEY_FALLBACKS.
    """
    done, failed = run_in_transaction(enrolment.reencrypt_secrets)
    print_result(f"Encrypted {done} secrets with the current key.")
    if failed:
        raise click.ClickException(
            f"{failed} secrets cannot be decrypted. Add the previous key to SECRET_KEY_FALLBACKS."
        )
