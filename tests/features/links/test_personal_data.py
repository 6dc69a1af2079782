"""Links in "Download your data", and in the cleanup of unconfirmed accounts."""

import json
from datetime import timedelta

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app.links import public_lists, queries
from app.user import unconfirmed_accounts
from app.user.models import User
from quart_upsun.jobs.queue import enqueue
from quart_upsun.testing import runner_of
from tests.features.factories import Person


@pytest.fixture
async def ada(app: Quart, client: Client) -> Person:
    person = await Person().register(app)
    await person.log_in(client)
    return person


async def test_personal_data_export_contains_links_and_public_lists(
    app: Quart, client: Client, ada: Person
) -> None:
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        await queries.save_link(
            session, ada.id, "https://example.com/", title="\u0645\u06cc", tags=["sea"]
        )
        await public_lists.publish_tag(session, ada.id, "sea")
        other = await Person().register(app)
        await queries.save_link(session, other.id, "https://example.org/", title="Not mine")
    data = json.loads(await (await client.get("/account/data.json")).get_data())
    (link,) = data["links"]
    assert (link["url"], link["title"], link["tags"]) == (
        "https://example.com/",
        "\u0645\u06cc",
        ["sea"],
    )
    assert [each["tag"] for each in data["public_lists"]] == ["sea"]
    head = await client.head("/account/data.json")
    assert (head.status_code, await head.get_data()) == (200, b"")


async def test_cleanup_keeps_unconfirmed_accounts_with_links(
    app: Quart,
) -> None:
    database = app.extensions["quart_upsun"].database
    writer = await Person().register(app, confirmed=False)
    async with database.write() as session:
        old = func.now() - timedelta(days=31)
        await session.execute(update(User).values(created_at=old))
        await queries.save_link(session, writer.id, "https://example.com/")
        await enqueue(session, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS.task)
    await runner_of(app, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS.task).run_due()
    async with database.read() as session:
        assert await session.scalar(select(User.id)) == writer.id
