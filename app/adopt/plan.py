"""Decide what becomes of each user of a Flask application, before anything is changed."""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from app.adopt import hashes
from app.adopt.shape import AdoptError, Shape, quote
from app.user.forms import USERNAME_PATTERN, normalize_email
from app.user.models import EMAIL_LENGTH, UNUSABLE_HASH, USERNAME_LENGTH, Role

MIN_USERNAME_LENGTH = 3
ADMIN_ROLES = ("admin", "administrator", "superuser")


@dataclass
class NewUser:
    """A row of this application's users table."""

    id: int
    username: str
    email: str | None
    pending_email: str | None
    password_hash: str
    role: Role
    is_active: bool
    created_at: datetime | None


@dataclass(frozen=True)
class Change:
    """Something that does not come over as it is."""

    id: int
    """The id of the user."""
    old: str
    new: str
    reason: str


@dataclass
class Plan:
    """What `quart adopt` does."""

    shape: Shape
    users: list[NewUser] = field(default_factory=list)
    hash_kinds: Counter[str] = field(default_factory=Counter)
    """Number of users by the kind of their password hash."""
    renamed: list[Change] = field(default_factory=list)
    emails: list[Change] = field(default_factory=list)
    """Email addresses that are invalid, shared or missing."""
    resets: list[Change] = field(default_factory=list)
    """Users who must set a new password; `old` is the username."""
    locked_out: list[Change] = field(default_factory=list)
    """Those of them without an email address for the reset link."""
    other_roles: Counter[str] = field(default_factory=Counter)
    """Roles that this application does not have, with the number of users."""


@dataclass(frozen=True)
class Wishes:
    """What the caller decides about users."""

    admin_roles: Sequence[str] = ADMIN_ROLES
    renames: Mapping[str, str] = field(default_factory=dict)
    """New usernames by old ones."""
    usernames: Mapping[int, str] = field(default_factory=dict)
    """New usernames by id."""
    emails: Mapping[int, str] = field(default_factory=dict)
    """Email addresses by id."""
    has_long_passwords: bool = False
    """Whether the application set BCRYPT_HANDLE_LONG_PASSWORDS."""


def read_changes(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Read the CSV file of `--changes`, with the columns `id`, and `username` or `email` or both.

    Returns:
        Usernames and email addresses by id.

    Raises:
        AdoptError: the file cannot be read or is not such a table.
    """
    usernames, emails = {}, {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            if "id" not in columns or not columns & {"username", "email"}:
                raise AdoptError(
                    f"The first line of {path} must be “id,username,email”, or without one of the"
                    " last two."
                )
            for row in rows:
                if not re.fullmatch(r"\d{1,18}", (row["id"] or "").strip()):
                    raise AdoptError(f"{path}, line {rows.line_num}: the id must be a number.")
                user_id = int(row["id"])
                if username := (row.get("username") or "").strip():
                    usernames[user_id] = username
                if email := (row.get("email") or "").strip():
                    emails[user_id] = email
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AdoptError(f"Cannot read {path}: {error}.") from None
    return usernames, emails


def make_plan(connection: Connection, shape: Shape, wishes: Wishes) -> Plan:
    """Read the users, and decide what becomes of them.

    Args:
        connection: a transaction, so that all queries see the same rows.
        shape: the tables.
        wishes: what the caller decides.

    Raises:
        AdoptError: a wish cannot be fulfilled.
    """
    plan = Plan(shape)
    rows = _read_users(connection, shape)
    _check_wishes(rows, wishes)
    roles = _read_roles(connection, shape)
    usernames = _choose_usernames(plan, rows, wishes)
    addresses = _choose_emails(plan, rows, wishes)
    admin_roles = {name.lower() for name in wishes.admin_roles}
    for row in rows:
        user_id = row["id"]
        own_roles = roles.get(user_id, set()) | {row.get("role") or ""} - {""}
        is_admin = bool(row.get("is_admin")) or any(
            name.lower() in admin_roles for name in own_roles
        )
        plan.other_roles.update(name for name in own_roles if name.lower() not in admin_roles)
        email = addresses.get(user_id)
        is_confirmed = bool(row["confirmed"]) if "confirmed" in row else True
        user = NewUser(
            id=user_id,
            username=usernames[user_id],
            email=email if is_confirmed else None,
            pending_email=None if is_confirmed else email,
            password_hash=_choose_hash(plan, row, usernames[user_id], email, wishes),
            role=Role.ADMINISTRATOR if is_admin else Role.MEMBER,
            is_active=bool(row["active"]) if "active" in row else True,
            created_at=_aware(row.get("created_at")),
        )
        plan.users.append(user)
    return plan


def _read_users(connection: Connection, shape: Shape) -> list[dict[str, Any]]:
    names = {"id": "id"} | {key: column.name for key, column in shape.read.items()}
    columns = ", ".join(quote(name) for name in names.values())
    query = text(f"SELECT {columns} FROM {quote(shape.table)} ORDER BY id")
    return [dict(zip(names, row, strict=True)) for row in connection.execute(query)]


def _read_roles(connection: Connection, shape: Shape) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for query in shape.role_queries:
        for user_id, name in connection.execute(text(query)):
            found.setdefault(user_id, set()).add(str(name))
    return found


def _check_wishes(rows: Sequence[Mapping[str, Any]], wishes: Wishes) -> None:
    """Check that what the caller wants is possible.

    Raises:
        AdoptError: a wish is about a user who does not exist, or its value is invalid.
    """
    ids = {row["id"] for row in rows}
    names = {row.get("username") for row in rows}
    for user_id in (*wishes.usernames, *wishes.emails):
        if user_id not in ids:
            raise AdoptError(f"There is no user with the id {user_id}.")
    for old in wishes.renames:
        if old not in names:
            raise AdoptError(f"There is no user called {old}.")
    for new in (*wishes.renames.values(), *wishes.usernames.values()):
        if not _is_valid_username(new):
            raise AdoptError(
                f"{new!r} cannot be a username. Use {MIN_USERNAME_LENGTH} to {USERNAME_LENGTH}"
                " letters, digits, dots, hyphens and underscores, with a letter or digit at both"
                " ends."
            )
    for email in wishes.emails.values():
        try:
            normalize_email(email)
        except ValueError:
            raise AdoptError(f"{email!r} is not a valid email address.") from None


def _is_valid_username(name: str) -> bool:
    return (
        MIN_USERNAME_LENGTH <= len(name) <= USERNAME_LENGTH
        and re.match(USERNAME_PATTERN, name) is not None
    )


def _choose_usernames(
    plan: Plan, rows: Sequence[Mapping[str, Any]], wishes: Wishes
) -> dict[int, str]:
    """Return the username of each user.

    Names that the caller chooses come first, then valid names, the lowest id first, and then what
    is made of the others. So nobody is renamed because of an invalid name.

    Raises:
        AdoptError: two users would get the name that the caller has chosen.
    """
    chosen: dict[int, str] = {}
    taken: dict[str, int] = {}
    for row in rows:
        old = row.get("username")
        new = wishes.usernames.get(row["id"]) or wishes.renames.get(old or "")
        if new:
            if new.lower() in taken:
                raise AdoptError(f"Two users cannot both be called {new}.")
            taken[new.lower()], chosen[row["id"]] = row["id"], new
            plan.renamed.append(Change(row["id"], str(old or ""), new, "as you chose"))
    for row in rows:
        name = row.get("username") or ""
        if row["id"] not in chosen and _is_valid_username(name) and name.lower() not in taken:
            taken[name.lower()], chosen[row["id"]] = row["id"], name
    for row in rows:
        if row["id"] in chosen:
            continue
        old = row.get("username") or ""
        if old and _is_valid_username(old):
            reason = f"user {taken[old.lower()]} has this name, apart from upper and lower case"
        elif old:
            reason = "not a valid username"
        else:
            reason = "no username"
        new = suggest_username(old or row.get("email") or "", row["id"], taken)
        taken[new.lower()], chosen[row["id"]] = row["id"], new
        plan.renamed.append(Change(row["id"], old, new, reason))
    return chosen


def suggest_username(text: str, user_id: int, taken: Mapping[str, Any]) -> str:
    """Return a valid username that resembles a text, and that nobody has.

    Args:
        text: an invalid username or an email address.
        user_id: the id, which is appended if the name is short or taken.
        taken: the names that are taken, in lower case.
    """
    decomposed = unicodedata.normalize("NFKD", text.strip().partition("@")[0])
    plain = "".join(each for each in decomposed if not unicodedata.combining(each))
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:USERNAME_LENGTH].strip("._-")
    if len(plain) >= MIN_USERNAME_LENGTH and plain.lower() not in taken:
        return plain
    for suffix in (f"-{user_id}", *(f"-{user_id}-{number}" for number in range(2, 1000))):
        start = (plain or "user")[: USERNAME_LENGTH - len(suffix)].strip("._-") or "user"
        if (name := start + suffix).lower() not in taken and _is_valid_username(name):
            return name
    raise AdoptError(f"No username was found for the user {user_id}. Choose one with --changes.")


def _choose_emails(plan: Plan, rows: Sequence[Mapping[str, Any]], wishes: Wishes) -> dict[int, str]:
    """Return the email addresses by user id. An address that several share goes to one of them."""
    addresses: dict[int, str] = {}
    claims: dict[str, list[tuple[bool, int]]] = {}
    for row in rows:
        user_id = row["id"]
        old = wishes.emails.get(user_id) or row.get("email") or ""
        try:
            new = normalize_email(old.strip()[: 2 * EMAIL_LENGTH])
        except ValueError:
            reason = "not a valid email address" if old.strip() else "no email address"
            plan.emails.append(Change(user_id, old, "", reason))
            continue
        addresses[user_id] = new
        if user_id in wishes.emails:
            plan.emails.append(Change(user_id, row.get("email") or "", new, "as you chose"))
        is_inactive = "active" in row and not row["active"]
        claims.setdefault(new.lower(), []).append((is_inactive, user_id))
    for same in claims.values():
        (_, owner), *others = sorted(same)
        for _, user_id in others:
            old = addresses.pop(user_id)
            plan.emails.append(Change(user_id, old, "", f"user {owner} has this address"))
    plan.emails.sort(key=lambda change: change.id)
    return addresses


def _choose_hash(
    plan: Plan, row: Mapping[str, Any], username: str, email: str | None, wishes: Wishes
) -> str:
    """Return the password hash to store: the old one, if it can be verified."""
    stored = row.get("password")
    if isinstance(stored, bytes):
        stored = stored.decode("ascii", errors="replace")
    stored = (stored or "").strip()
    if wishes.has_long_passwords and stored.startswith("$2"):
        stored = f"bcrypt_sha256${stored}"
    if kind := hashes.find_kind(stored):
        plan.hash_kinds[kind.name] += 1
        return str(stored)
    reason = "unknown kind of password hash" if stored else "no password"
    plan.hash_kinds["of an unknown kind" if stored else "missing"] += 1
    plan.resets.append(Change(row["id"], username, email or "", reason))
    if not email:
        plan.locked_out.append(Change(row["id"], username, "", f"{reason}, and no email address"))
    return UNUSABLE_HASH


def _aware(value: date | datetime | None) -> datetime | None:
    """Return a time in UTC, as which times without a time zone are read."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001 see below
    return value if value.tzinfo else value.replace(tzinfo=UTC)
