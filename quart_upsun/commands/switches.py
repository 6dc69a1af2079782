"""`quart maintenance` and `quart read-only`: switch the modes on and off."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from sqlalchemy import URL, DateTime, Integer, cast, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from quart_upsun.database.commands import run_in_transaction
from quart_upsun.database.url import require_url
from quart_upsun.security import audit
from quart_upsun.switches.end_time import parse_end_time
from quart_upsun.switches.models import MAX_MESSAGE_LENGTH, SwitchRow
from quart_upsun.switches.state import MAINTENANCE, READ_ONLY, TITLES
from quart_upsun.switches.watcher import CHANNEL, POLL_SECONDS

DEFAULT_MESSAGES = {
    MAINTENANCE: "The site is down for maintenance.",
    READ_ONLY: "The site is read-only at the moment, so changes cannot be saved.",
}
DEFAULT_RETRY_AFTER_MINUTES = 5
MAX_RETRY_AFTER_MINUTES = 24 * 60
HELP = {
    MAINTENANCE: """Take the site down for everybody but administrators.

    Pages and the API respond with 503 and a message. Health checks, static files and the login keep
    working, and no job is started. All processes follow within seconds, without a deploy.
    """,
    READ_ONLY: """Refuse all changes, and serve everything else.

    Requests that may change data get 503 and a message, and no job is started. Logging in and out
    keeps working. All processes follow within seconds, without a deploy.
    """,
}


def message_text(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Check the option --message.

    Raises:
        BadParameter: the message is empty, too long, or has control characters.
    """
    if value is None:
        return None
    text = value.strip()
    if not text:
        raise click.BadParameter("The message is empty.")
    if len(text) > MAX_MESSAGE_LENGTH:
        raise click.BadParameter(
            f"The message has {len(text)} characters, but at most {MAX_MESSAGE_LENGTH} are allowed."
        )
    if not text.isprintable():
        raise click.BadParameter("The message must be one line without control characters.")
    return text


def end_time(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """Check the option --until.

    Raises:
        BadParameter: the time is invalid, unclear, in the past or too far ahead.
    """
    if value is None:
        return None
    try:
        return parse_end_time(value, datetime.now().astimezone())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def switch_group(url: URL, name: str) -> click.Group:
    """Return the commands of one switch.

    Args:
        url: the database.
        name: `MAINTENANCE` or `READ_ONLY`.
    """
    title = TITLES[name]

    @click.group(name, help=HELP[name])
    def group() -> None:
        require_url(url)

    @group.command("on")
    @click.option("--message", callback=message_text, help="The sentence that visitors see.")
    @click.option(
        "--retry-after",
        type=click.IntRange(1, MAX_RETRY_AFTER_MINUTES),
        metavar="MINUTES",
        help="In how many minutes clients should try again."
        f"  [default: {DEFAULT_RETRY_AFTER_MINUTES}]",
    )
    @click.option(
        "--until",
        callback=end_time,
        metavar="TIME",
        help="When it is expected to end: 14:30Z, 2026-12-01T14:30+01:00, or a duration such as"
        " 1h30m. Clients try again then, and the message names the time. It does not switch it"
        " off.",
    )
    def on(message: str | None, retry_after: int | None, until: datetime | None) -> None:
        """Switch it on, or change the message and the time."""
        if retry_after is not None and until is not None:
            raise click.UsageError("Use either --retry-after or --until.")
        text = message or DEFAULT_MESSAGES[name]
        if until is not None:
            text = f"{text} Expected end: {shown(until)}."
        elif message is None:
            text = f"{text} Try again in a few minutes."
        end = until or datetime.now(UTC) + timedelta(
            minutes=retry_after or DEFAULT_RETRY_AFTER_MINUTES
        )

        async def work(connection: AsyncConnection) -> None:
            def seconds_since(start: Any) -> Any:
                return cast(func.extract("epoch", cast(end, DateTime(True)) - start), Integer)

            statement = insert(SwitchRow).values(
                name=name, message=text, retry_after_seconds=seconds_since(func.now())
            )
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[SwitchRow.name],
                    set_={
                        "message": text,
                        # An earlier `since` stays.
                        "retry_after_seconds": seconds_since(SwitchRow.since),
                    },
                )
            )
            await announce(connection, f"{title.lower()} on")

        run_in_transaction(url, work)
        click.echo(f"{title} is on. All processes follow within {POLL_SECONDS:.0f} seconds.")
        if until is not None:
            left = round((until - datetime.now(UTC)).total_seconds() / 60)
            click.echo(
                f"Expected end: {shown(until)}, in {left} minutes. Switch it off yourself then."
            )

    @group.command("off")
    def off() -> None:
        """Switch it off."""

        async def work(connection: AsyncConnection) -> bool:
            found = await connection.execute(delete(SwitchRow).where(SwitchRow.name == name))
            if found.rowcount:
                await announce(connection, f"{title.lower()} off")
            return bool(found.rowcount)

        if run_in_transaction(url, work):
            click.echo(f"{title} is off. All processes follow within {POLL_SECONDS:.0f} seconds.")
        else:
            click.echo(f"{title} is already off.")

    @group.command("status")
    def status() -> None:
        """Show whether it is on, since when, and the message."""

        async def work(connection: AsyncConnection) -> str:
            row = (
                await connection.execute(
                    select(SwitchRow.message, SwitchRow.retry_after_seconds, SwitchRow.since).where(
                        SwitchRow.name == name
                    )
                )
            ).one_or_none()
            if row is None:
                return f"{title} is off."
            end = row.since + timedelta(seconds=row.retry_after_seconds)
            return (
                f"{title} is on since {shown(row.since)}.\n"
                f"Message: {row.message}\n"
                f"Clients try again: {shown(end)}"
            )

        click.echo(run_in_transaction(url, work))

    return group


def shown(at: datetime) -> str:
    """Format a time for people."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


async def announce(connection: AsyncConnection, event: str) -> None:
    """Record the change in the audit trail, and notify all processes when it is committed."""
    await audit.record(AsyncSession(connection), event, None)
    await connection.execute(select(func.pg_notify(CHANNEL, "")))
