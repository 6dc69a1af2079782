"""The steps of the tests: ask for options, and answer them."""

import json
from dataclasses import dataclass
from typing import Any

from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select

from app.user.passkeys.models import Passkey
from quart_upsun.security.models import AuditEvent
from tests.features.passkeys.authenticator import Authenticator

PAGE = "/account/passkeys/"
LOGIN = "/login/passkey/"


@dataclass
class Answer:
    """The status, the location and the text of a response."""

    status: int
    location: str | None
    text: str


async def ask(client: Client, path: str) -> dict[str, Any]:
    """Ask for the options of a ceremony; returns `options` and `token`."""
    response = await client.post(path)
    assert response.status_code == 200, await response.get_data(as_text=True)
    assert response.headers["Cache-Control"] == "private, no-store"
    content: dict[str, Any] = await response.get_json()
    return content


async def send(client: Client, path: str, credential: Any, token: str, **form: str) -> Answer:
    """Send a credential in a form, as the script does."""
    text = credential if isinstance(credential, str) else json.dumps(credential)
    response = await client.post(path, form={"response": text, "token": token, **form})
    return Answer(
        response.status_code,
        response.headers.get("Location"),
        await response.get_data(as_text=True),
    )


async def add_passkey(
    client: Client, authenticator: Authenticator, *, name: str = "Laptop"
) -> Answer:
    """Register a passkey for the user who is logged in with `client`."""
    asked = await ask(client, f"{PAGE}options/")
    credential = authenticator.create(asked["options"])
    return await send(client, PAGE, credential, asked["token"], name=name)


async def log_in(client: Client, authenticator: Authenticator, **form: str) -> Answer:
    """Log in without a username."""
    asked = await ask(client, f"{LOGIN}options/")
    return await send(client, LOGIN, authenticator.get(asked["options"]), asked["token"], **form)


async def is_logged_in(client: Client) -> bool:
    return (await client.get("/account/")).status_code == 200


async def events_of(app: Quart, user_id: int) -> list[str]:
    """Return the audit events of a user, oldest first."""
    query = select(AuditEvent.kind).where(AuditEvent.user_id == user_id).order_by(AuditEvent.id)
    async with app.extensions["quart_upsun"].database.read() as session:
        return list((await session.scalars(query)).all())


async def stored(app: Quart) -> list[Passkey]:
    """Return all passkeys, oldest first."""
    async with app.extensions["quart_upsun"].database.read() as session:
        return list((await session.scalars(select(Passkey).order_by(Passkey.id))).all())
