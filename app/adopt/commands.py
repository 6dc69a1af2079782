"""`quart adopt`: take over the database of a Flask application."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from app.adopt.hashes import is_old
from app.adopt.plan import ADMIN_ROLES, Change, Plan, Wishes, read_changes
from app.adopt.shape import READ, SCHEMA, AdoptError, AlreadyAdoptedError, Choices
from app.adopt.takeover import Takeover
from app.user.models import Role, User
from quart_upsun.database import NoConnectionError, unpooled_engine
from quart_upsun.logging import configure_logging
from quart_upsun.settings import Settings

T = TypeVar("T")

MAX_LINES = 20  # of each list in the report


def parse_pairs(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Parse options of the form NAME=VALUE. A callback for click."""
    pairs = {}
    for value in values:
        name, sign, new = value.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{value!r} must have the form {option.metavar}.")
        pairs[name] = new
    return pairs


def adopt_command(settings: Settings) -> click.Command:
    """Return the command `quart adopt`."""

    @click.command("adopt")
    @click.option("--yes", is_flag=True, help="Adopt the database. Otherwise, only report.")
    @click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
    @click.option("--table", metavar="NAME", help="The table of users (default: users or user).")
    @click.option(
        "--column",
        "columns",
        metavar="WHAT=COLUMN",
        multiple=True,
        callback=parse_pairs,
        help=f"The column of WHAT: {', '.join(READ)}. WHAT= for none.",
    )
    @click.option(
        "--admin-role",
        "admin_roles",
        metavar="NAME",
        multiple=True,
        default=ADMIN_ROLES,
        help=f"A role of administrators (default: {', '.join(ADMIN_ROLES)}).",
    )
    @click.option(
        "--rename",
        "renames",
        metavar="OLD=NEW",
        multiple=True,
        callback=parse_pairs,
        help="A new username.",
    )
    @click.option(
        "--changes",
        type=click.Path(path_type=Path),
        help="A CSV file with new usernames or email addresses; its first line is"
        " id,username,email.",
    )
    @click.option(
        "--long-passwords",
        is_flag=True,
        help="The application set BCRYPT_HANDLE_LONG_PASSWORDS.",
    )
    def adopt(
        yes: bool,
        as_json: bool,
        table: str | None,
        columns: dict[str, str],
        admin_roles: tuple[str, ...],
        renames: dict[str, str],
        changes: Path | None,
        long_passwords: bool,
    ) -> None:
        """Take over the users of a Flask application, with their ids and passwords.

        Without --yes, it reports what it would do, and changes nothing. With --yes, it moves the
        tables of the Flask application to the schema “flask”, creates the tables of this
        application, and copies the users, all in one transaction. See docs/from-flask.md.
        """
        configure_logging("warning")
        for name in columns:
            if name not in READ:
                raise click.BadParameter(f"{name!r} is not one of {', '.join(READ)}.")
        try:
            usernames, emails = read_changes(changes) if changes else ({}, {})
            takeover = Takeover(
                url=settings.direct_url,
                root=settings.root,
                choices=Choices(table, columns),
                wishes=Wishes(admin_roles, renames, usernames, emails, long_passwords),
                report=lambda line: click.echo(line, err=True),
            )
            plan = _run(takeover.run if yes else takeover.examine)
        except AlreadyAdoptedError as error:
            old = _run(lambda: _count_old_hashes(settings))
            click.echo(
                json.dumps({"adopted": True, "old_hashes": old})
                if as_json
                else f"{error} Nothing to do. Accounts with a password hash of the old application:"
                f" {old}."
            )
        except AdoptError as error:
            raise click.ClickException(str(error)) from None
        else:
            if as_json:
                click.echo(json.dumps(to_json(plan, adopted=yes), indent=2, ensure_ascii=False))
            else:
                click.echo("\n".join(describe(plan, adopted=yes)))

    return adopt


async def _count_old_hashes(settings: Settings) -> int:
    engine = unpooled_engine(settings.direct_url, name="quart adopt")
    try:
        async with engine.connect() as connection:
            query = select(func.count(User.id)).where(is_old())
            return int(await connection.scalar(query) or 0)
    finally:
        await engine.dispose()


def _run(work: Callable[[], Any]) -> Any:
    """Run `work`, and translate errors of the database.

    Raises:
        ClickException: the database cannot be used.
    """
    try:
        return asyncio.run(work())
    except NoConnectionError as error:
        raise click.ClickException(
            f"Cannot connect to the database: {error}. Check DATABASE_URL."
        ) from None
    except (OSError, DBAPIError) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise click.ClickException(
            f"Nothing was changed. The database returned an error: {reason}"
        ) from None


def describe(plan: Plan, *, adopted: bool) -> list[str]:
    """Return the report, line by line.

    Args:
        plan: what was done, or would be done.
        adopted: whether it was done.
    """
    users, shape = plan.users, plan.shape
    active = sum(user.is_active for user in users)
    administrators = sum(user.role == Role.ADMINISTRATOR for user in users)
    unconfirmed = sum(user.pending_email is not None for user in users)
    lines = [
        f"Users: {len(users)} in the table {shape.table}, {active} of them active,"
        f" {administrators} administrators.",
        "Columns: "
        + ", ".join(f"{key} from {column.name}" for key, column in shape.read.items())
        + ".",
        f"Passwords: {', '.join(f'{n} {kind}' for kind, n in plan.hash_kinds.items()) or 'none'}.",
        f"Tables that move to the schema “{SCHEMA}” with their rows and foreign keys:"
        f" {', '.join(shape.tables)}.",
    ]
    if unconfirmed:
        lines.append(f"Email addresses that are not confirmed, and stay so: {unconfirmed}.")
    lines += _list(
        "Usernames that change. Tell these users, who log in with the new name",
        plan.renamed,
        lambda change: f"{change.old or '(none)'} → {change.new} ({change.reason})",
    )
    lines += _list(
        "Email addresses that change",
        plan.emails,
        lambda change: f"{change.old or '(none)'} → {change.new or '(none)'} ({change.reason})",
    )
    lines += _list(
        "Users who must set a new password with “Forgot password?”",
        [change for change in plan.resets if change.new],
        lambda change: f"{change.old} ({change.reason})",
    )
    lines += _list(
        "Users who cannot log in before you run `quart user reset-link`",
        plan.locked_out,
        lambda change: f"{change.old} ({change.reason})",
    )
    if plan.other_roles:
        roles = ", ".join(f"{name} ({n})" for name, n in sorted(plan.other_roles.items()))
        lines.append(
            f"Roles that this application does not have: {roles}. They stay in “{SCHEMA}”; name"
            " roles of administrators with --admin-role."
        )
    if shape.extensions:
        lines.append(
            f"Extensions that stay in “public”: {', '.join(shape.extensions)}. If the old"
            f" application needs one, run ALTER EXTENSION … SET SCHEMA {SCHEMA}."
        )
    lines.append("")
    if adopted:
        lines.append(
            f"Done. The old application finds its tables with the search path “{SCHEMA}”: see"
            " docs/from-flask.md."
        )
    else:
        lines.append(
            "Nothing was changed. Change usernames with --rename OLD=NEW, and both usernames and"
            " email addresses with --changes FILE. Run this again with --yes to adopt the database."
        )
    return lines


def _list(title: str, changes: Sequence[Change], text: Callable[[Change], str]) -> list[str]:
    if not changes:
        return []
    lines = [f"{title}: {len(changes)}"]
    lines += [f"  {change.id}: {text(change)}" for change in changes[:MAX_LINES]]
    if len(changes) > MAX_LINES:
        lines.append(f"  … and {len(changes) - MAX_LINES} more; --json lists all.")
    return lines


def to_json(plan: Plan, *, adopted: bool) -> dict[str, Any]:
    """Return the report for programs, without password hashes; see `describe()`."""
    return {
        "adopted": adopted,
        "table": plan.shape.table,
        "columns": {key: column.name for key, column in plan.shape.read.items()},
        "revision": plan.shape.revision,
        "moved": plan.shape.tables,
        "users": len(plan.users),
        "active": sum(user.is_active for user in plan.users),
        "administrators": [u.username for u in plan.users if u.role == Role.ADMINISTRATOR],
        "unconfirmed": [u.username for u in plan.users if u.pending_email is not None],
        "password_hashes": plan.hash_kinds,
        "renamed": [asdict(change) for change in plan.renamed],
        "emails": [asdict(change) for change in plan.emails],
        "resets": [asdict(change) for change in plan.resets],
        "locked_out": [asdict(change) for change in plan.locked_out],
        "other_roles": plan.other_roles,
    }
