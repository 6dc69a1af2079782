"""The `quart user` commands, which manage accounts."""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
from quart.cli import ScriptInfo
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import site
from app.user import accounts, emails, passwords
from app.user.audit_trail import Event
from app.user.forms import USERNAME_PATTERN, RegisterForm
from app.user.models import Role, User
from quart_upsun.current import current_toolkit
from quart_upsun.database import DatabaseUnavailableError
from quart_upsun.database.ownership import ForeignDatabaseError, read_owner, require_owner
from quart_upsun.jobs.queue import JobError
from quart_upsun.logging import configure_logging
from quart_upsun.mail.delivery import external_url
from quart_upsun.security import audit

T = TypeVar("T")


@click.group("user")
def group() -> None:
    """Manage accounts."""


@group.command()
@click.argument("username")
@click.argument("email")
@click.option("--administrator", is_flag=True, help="Create an administrator.")
def create(username: str, email: str, administrator: bool) -> None:
    """Create a user with a confirmed email address.

    Prompts for the password on a terminal. Otherwise, reads it from the first line of standard
    input.
    """
    password = read_password()
    # The same rules as for the registration form.
    values = {"username": username, "email": email, "password": password, "confirm": password}
    form = RegisterForm(data=values)
    if not form.validate():
        errors = (f"{field.label.text}: {field.errors[0]}" for field in form if field.errors)
        raise click.ClickException(" ".join(errors))
    address = str(form.email.data)
    password_hash = passwords.hash_password_blocking(password)

    async def work(session: AsyncSession) -> User:
        user = await accounts.create_user(
            session,
            username=str(form.username.data),
            email=address,
            password_hash=password_hash,
            should_confirm=False,
        )
        await accounts.confirm_email(session, user.id, address)
        if administrator:
            await accounts.set_role(session, user.id, Role.ADMINISTRATOR)
        return user

    try:
        user = run_in_transaction(work)
    except accounts.AccountTakenError as error:
        taken = "username" if error.field == "username" else "email address"
        raise click.ClickException(f"Another account already has this {taken}.") from None
    print_result(f"Created user {user.username} with ID {user.id}.")


@group.command()
@click.argument("username")
def promote(username: str) -> None:
    """Make a user an administrator."""

    async def work(session: AsyncSession) -> None:
        user = await find_user(session, username)
        if not user.is_administrator:
            await accounts.set_role(session, user.id, Role.ADMINISTRATOR)

    run_in_transaction(work)
    print_result(f"{username} is now an administrator.")


@group.command()
@click.argument("username")
def demote(username: str) -> None:
    """Make an administrator a regular member."""

    async def work(session: AsyncSession) -> None:
        user = await find_user(session, username)
        if user.is_administrator:
            await accounts.set_role(session, user.id, Role.MEMBER)

    run_in_transaction(work)
    print_result(f"{username} is now a member.")


@group.command()
@click.argument("username")
def deactivate(username: str) -> None:
    """Deactivate a user, end their sessions and revoke their access tokens."""

    async def work(session: AsyncSession) -> None:
        user = await find_user(session, username)
        if user.deactivated_at is None:
            await accounts.deactivate_user(session, user.id)
            await site.revoke_access(session, user.id)

    run_in_transaction(work)
    print_result(f"{username} is now deactivated.")


@group.command()
@click.argument("username")
def reactivate(username: str) -> None:
    """Reactivate a user. Ended sessions and revoked tokens are not restored."""

    async def work(session: AsyncSession) -> None:
        user = await find_user(session, username)
        if user.deactivated_at is not None:
            await accounts.reactivate_user(session, user.id)

    run_in_transaction(work)
    print_result(f"{username} is now active.")


@group.command("reset-link")
@click.argument("username")
def reset_link(username: str) -> None:
    """Print a password reset link, which works once and expires after one hour."""

    async def work(session: AsyncSession) -> str:
        await require_own_database(session)
        user = await find_user(session, username)
        if user.deactivated_at is not None:
            raise click.ClickException(
                f"{username} is deactivated. Run `quart user reactivate` first."
            )
        await audit.record(session, Event.RESET_LINK_CREATED, user.id)
        try:
            return external_url("recovery.reset", token=emails.create_reset_token(user))
        except JobError as error:
            raise click.ClickException(str(error)) from None

    print_result(run_in_transaction(work))


def read_password() -> str:
    """Prompt for the password, or read the first line of standard input without its line ending.

    Raises:
        ClickException: the password cannot be read or is not UTF-8.
    """
    if sys.stdin is None:
        raise click.ClickException("Standard input is closed. Pipe the password to it.")
    try:
        if sys.stdin.isatty():
            typed: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
            # Bytes outside the terminal's encoding arrive as surrogates.
            return os.fsencode(typed).decode()
        line = sys.stdin.buffer.readline(4 * passwords.MAX_LENGTH + 2)
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeError:
        raise click.ClickException("The password must be valid UTF-8.") from None
    except OSError as error:
        raise click.ClickException(f"Cannot read the password: {error.strerror}.") from None


def print_result(text: str) -> None:
    """Print the result of a command.

    Raises:
        ClickException: writing to standard output fails. The command has done its work by then.
    """
    try:
        click.echo(text)
    except OSError as error:
        # Python would try to flush the buffer again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(
            f"Done, but writing the result to standard output failed: {error.strerror}."
        ) from None


async def find_user(session: AsyncSession, username: str) -> User:
    """Return the user with this name.

    Raises:
        ClickException: the user does not exist.
    """
    # PostgreSQL rejects NUL characters.
    user = (
        await accounts.get_user_by_username(session, username)
        if re.match(USERNAME_PATTERN, username)
        else None
    )
    if user is None:
        shown = username if username.isprintable() else ascii(username)
        raise click.ClickException(f"User {shown} does not exist.")
    return user


async def require_own_database(session: AsyncSession) -> None:
    """Check that the database belongs to this environment, whose key signs links.

    Raises:
        ClickException: it belongs to another environment.
    """
    connection = await session.connection()
    try:
        require_owner(await connection.run_sync(read_owner), current_toolkit().identity)
    except ForeignDatabaseError as error:
        raise click.ClickException(
            f"{error.facts} A link from here would not work there. Run the command there."
        ) from None


def run_in_transaction(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Run `work` in a transaction of the application's database.

    Raises:
        ClickException: standard output is closed, or the database returned an error.
    """
    if sys.stdout is None:
        raise click.ClickException("Standard output is closed. Nothing was changed.")
    app = click.get_current_context().ensure_object(ScriptInfo).load_app()
    configure_logging("warning", stream=sys.stderr)
    database = app.extensions["quart_upsun"].database

    async def inside() -> T:
        async with app.app_context():
            try:
                async with database.write() as session:
                    return await work(session)
            finally:
                await database.close()

    try:
        return asyncio.run(inside())
    except DatabaseUnavailableError as error:
        raise click.ClickException(f"Cannot use the database: {error}.") from None
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]
        raise click.ClickException(f"The database returned an error: {reason}.") from None
