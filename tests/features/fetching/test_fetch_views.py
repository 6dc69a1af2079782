"""The state of fetches on the pages of links, and the refetch button."""

from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select, text, update

from app.links.models import Link
from quart_upsun.database import Database
from quart_upsun.jobs.models import Job
from tests.features.factories import Person
from tests.features.links.test_views import saved, soup_of


async def jobs(database: Database) -> list[str]:
    async with database.read() as session:
        return list(await session.scalars(select(Job.entrypoint)))


async def test_a_new_link_is_fetched(client: Client, database: Database, ada: Person) -> None:
    await client.post("/links/", form={"url": "https://example.com/"})
    assert "Fetching the page…" in (await soup_of(client)).text
    assert await jobs(database) == ["links.fetch"]


async def test_refetch_button_enqueues_a_fetch(
    client: Client, database: Database, ada: Person
) -> None:
    link = await saved(database, ada, "old")
    async with database.write() as session:
        await session.execute(text("DELETE FROM pgqueuer"))
        error = {"fetch_error": "Too many redirects.", "fetched_at": Link.created_at}
        await session.execute(update(Link).values(**error))
    page = await soup_of(client, f"/links/{link}/")
    assert "Too many redirects." in page.text
    assert "Fetching the page…" not in page.text
    (form,) = page.select(f"form[action='/links/{link}/fetch/']")
    assert form.text.strip() == "Fetch again"
    assert (await client.post(str(form["action"]))).location == f"/links/{link}/"
    assert await jobs(database) == ["links.fetch"]


async def test_links_of_other_users_cannot_be_refetched(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    theirs = await saved(database, await Person().register(app), "secret")
    async with database.write() as session:
        await session.execute(text("DELETE FROM pgqueuer"))
    for link in (theirs, theirs + 1):
        assert (await client.post(f"/links/{link}/fetch/")).status_code == 404
    assert await jobs(database) == []
