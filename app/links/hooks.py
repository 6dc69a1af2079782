"""Extension points for other features, so that `app.links` does not import them.

- `metadata_requested` is a signal; connect an async function to it. It is sent in the transaction
  in which links are saved without a title or description, or lose theirs. Like Flask's signals it
  is global to the process, so a receiver gets all it needs as arguments:
  `async def receiver(_: object, *, session, link_ids, in_bulk)`.
- `add_template` includes a feature's template on the pages of links.
"""

from collections.abc import Sequence
from typing import Literal

from blinker import Signal
from quart import Quart
from sqlalchemy.ext.asyncio import AsyncSession

metadata_requested = Signal()


async def request_metadata(
    session: AsyncSession, link_ids: Sequence[int], *, in_bulk: bool = False
) -> None:
    """Send `metadata_requested` for links that need a title or description.

    Args:
        session: of `write()`.
        link_ids: ids of the links.
        in_bulk: whether these are many links, which should wait for links saved one at a time.
    """
    await metadata_requested.send_async(session=session, link_ids=link_ids, in_bulk=in_bulk)


def init_app(app: Quart) -> None:
    """Create the template slots; call this before `add_template`."""
    templates: dict[str, list[str]] = {"tools": [], "actions": [], "state": []}
    app.extensions["link_templates"] = app.jinja_env.globals["link_templates"] = templates


def add_template(app: Quart, slot: Literal["tools", "actions", "state"], template: str) -> None:
    """Include a template on the pages of links.

    Args:
        app: the application.
        slot: `tools` next to the list; `actions` on the page of a link (`item`); `state` in each
            link that has not been fetched, or whose last fetch failed.
        template: name of the template.
    """
    app.extensions["link_templates"][slot].append(template)
