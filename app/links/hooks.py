"""Extension points for other features, so that `app.links` does not import them.

- `metadata_requested` is a signal; connect an async function to it. It is sent in the transaction
  in which links are saved without a title or description, or lose theirs. Like Flask's signals it
  is global to the process, so a receiver gets all it needs as arguments:
  `async def receiver(_: object, *, session, link_ids, in_bulk)`.
- `page_changed` is a signal as well. It is sent in the transaction of a change that open pages of a
  user could show: `async def receiver(_: object, *, session, user_id, kind, data)`.
- `add_template` includes a feature's template on the pages of links.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from blinker import Signal
from quart import Quart, current_app
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database.statements import Source

Slot = Literal["tools", "actions", "state", "scripts", "attributes"]

metadata_requested = Signal()
page_changed = Signal()


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


async def announce_change(session: AsyncSession, user_id: int, kind: str, **data: Any) -> None:
    """Send `page_changed`.

    Args:
        session: of `write()`.
        user_id: the user whose pages show the change.
        kind: what has changed: `link` or `import`.
        data: details for the pages' script.
    """
    await page_changed.send_async(session=session, user_id=user_id, kind=kind, data=data)


async def newest_event_id(source: Source, user_id: int) -> int | None:
    """Return the event after which a page listens for changes; None if pages are not live."""
    read = current_app.extensions.get("links_newest_event")
    return None if read is None else await read(source, user_id)


def init_app(app: Quart) -> None:
    """Create the template slots; call this before `add_template`."""
    templates: dict[str, list[str]] = {slot: [] for slot in get_args(Slot)}
    app.extensions["link_templates"] = app.jinja_env.globals["link_templates"] = templates


def add_template(app: Quart, slot: Slot, template: str) -> None:
    """Include a template on the pages of links.

    Args:
        app: the application.
        slot: `tools` next to the list; `actions` on the page of a link (`item`); `state` in each
            link that has not been fetched, or whose last fetch failed; `scripts` in the head of
            each page; `attributes` in the tag of the list of links, and of imports.
        template: name of the template.
    """
    app.extensions["link_templates"][slot].append(template)
