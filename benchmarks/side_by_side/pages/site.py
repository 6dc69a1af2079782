"""What this application's templates need beside the framework: helpers, forms and URLs."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from jinja2 import StrictUndefined
from markupsafe import Markup, escape
from wtforms import Form, StringField

from benchmarks.side_by_side.pages.tables import MAX_TAGS, PAGE_SIZE, Link, User

APP = Path(__file__).parents[3] / "app"
TEMPLATES = APP / "templates"
MANIFEST = json.loads((APP / "manifest.json").read_text())
JINJA_OPTIONS: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "undefined": StrictUndefined,
}
# The pages that are linked, but not part of the comparison.
OTHER_PATHS = {
    "public.about": "/about/",
    "user.register": "/register/",
    "user.logout": "/logout/",
    "user.invite": "/invite/",
    "account.show": "/account/",
    "docs.show": "/docs",
    "links.save": "/links/",
    "live.events": "/links/events/",
    "bookmarks.overview": "/links/import/",
}
PLAIN_TEXT = {"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}


class MenuEntry(NamedTuple):
    label: str
    endpoint: str


EVERYBODY = [MenuEntry("Home", "public.home"), MenuEntry("About", "public.about")]
USERS = [MenuEntry("Links", "links.index"), MenuEntry("Members", "user.members")]


class Site:
    """The navigation bar, the footer, and the button of the home page."""

    footer = (
        MenuEntry("API", "docs.show"),
        MenuEntry("About this site", "public.about"),
    )
    start_page = MenuEntry("Your links", "links.index")

    def menu_for(self, user: User | None) -> list[MenuEntry]:
        return EVERYBODY + USERS if user else EVERYBODY


class SaveForm(Form):
    url = StringField("URL", render_kw={"inputmode": "url", **PLAIN_TEXT})
    tags = StringField("Tags", description="Separate tags with spaces.", render_kw=PLAIN_TEXT)


class Selection:
    """The first page of the unread links, without a tag or a search."""

    state = "unread"
    tag = before = None
    search_text = ""
    should_prepend_new = True
    parameters: dict[str, str] = {}  # noqa: RUF012
    tag_query = urlencode({"tag": ""})

    def with_state(self, state: str) -> dict[str, str]:
        return {} if state == self.state else {"state": state}

    def next_page(self, last: "Result") -> dict[str, str]:
        return {"before": str(last.item.id)}


class Result(NamedTuple):
    """A link as the list shows it, also as a result of a search."""

    item: Link
    title: str
    description: str


def format_time(value: datetime) -> Markup:
    value = value.astimezone(UTC)
    return Markup(  # noqa: S704 digits and names of months
        f'<time datetime="{value:%Y-%m-%dT%H:%M:%SZ}" title="{value:%d %b %Y %H:%M:%S} UTC"'
        f" data-relative>{value:%d %b %Y %H:%M} UTC</time>"
    )


def static_url_for(endpoint: str, *, filename: str) -> str:
    return f"/{endpoint}/{MANIFEST[filename]}"


def list_context(
    newest_event_id: int | None, links: Sequence[Link], tags: Sequence[str]
) -> dict[str, Any]:
    """Return the context of the list's template.

    Args:
        newest_event_id: the result of `newest_event`.
        links: the result of `unread_links`.
        tags: the result of `all_tags`.
    """
    return {
        "form": SaveForm(),
        "links": [Result(link, link.title, link.description) for link in links[:PAGE_SIZE]],
        "has_more": len(links) > PAGE_SIZE,
        "newest_event_id": newest_event_id or 0,
        "selection": Selection(),
        "tags": tags[:MAX_TAGS],
        "has_more_tags": len(tags) > MAX_TAGS,
        "is_public": False,
    }


# Without a search, there is nothing to highlight.
FILTERS = {"time": format_time, "highlight": escape}
GLOBALS: dict[str, Any] = {
    "site_name": os.environ.get("SITE_NAME", ""),
    "preview": None,
    "current_switches": list,
    "site": Site(),
    "static_url_for": static_url_for,
    # Removing a feature also removes its template.
    "link_templates": {
        slot: [name] if (TEMPLATES / name).exists() else []
        for slot, name in {
            "tools": "bookmarks/tool.html",
            "state": "fetching/state.html",
            "scripts": "live/scripts.html",
            "attributes": "live/attributes.html",
        }.items()
    },
}
