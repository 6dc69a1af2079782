"""How other features add to links, which import none of them.

- `metadata_requested` is a signal to connect an async function to. It is sent in the transaction in
  which links are saved without a title or description, or lose theirs. Like signals of Flask it is
  the process's, so a receiver takes all it needs from its arguments:
  `async def receiver(_: object, *, session, link_ids, in_bulk)`.
- `add_template` puts a template of theirs on the pages of links.
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
    """Tell the receivers of `metadata_requested` that links could use what their pages say.

    Args:
        session: of `write()`.
        link_ids: which.
        in_bulk: whether these are so many that links saved one at a time should go first.
    """
    await metadata_requested.send_async(session=session, link_ids=link_ids, in_bulk=in_bulk)


def init_app(app: Quart) -> None:
    """Prepare the slots; call it before `add_template`."""
    templates: dict[str, list[str]] = {"tools": [], "actions": [], "state": []}
    app.extensions["link_templates"] = app.jinja_env.globals["link_templates"] = templates


def add_template(app: Quart, slot: Literal["tools", "actions", "state"], template: str) -> None:
    """Include a template on the pages of links.

    Args:
        app: the application.
        slot: `tools` beside the list; `actions` on the page of one link, which is `item`; `state`
            in each link that was not fetched, or not without an error.
        template: its name.
    """
    app.extensions["link_templates"][slot].append(template)
