"""Data for the tests that visit all routes."""

from quart import Quart

from app.links import public_lists
from tests.features.factories import Person

SHARED = {"/lists/1/1/"}
"""Paths with public caching."""


async def prepare(app: Quart) -> None:
    """Publish a list at the path whose variables are all `1`."""
    person = await Person("1").register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        await public_lists.publish_tag(session, person.id, "1")
