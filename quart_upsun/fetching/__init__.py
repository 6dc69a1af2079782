"""Fetch untrusted URLs, with SSRF protection and a concurrency limit per host.

- `Fetcher` limits size, time, redirects and content types, and connects to public IP addresses only
  (`public_network`).
- `fetch_page` reads a page's title, description and icon (`page_metadata`).
- `turn` limits how many background jobs fetch from a host at a time (`turns`, `job_turns`).

In a job:

    fetcher = current_app.extensions["fetcher"]  # from `init_app(app)`
    async with turn(running, fetcher, owner=user_id) as visit:
        page, icon = await fetch_page(fetcher, url, visit)
    ...  # store the result
"""

from quart_upsun.fetching.fetcher import Fetched, Fetcher
from quart_upsun.fetching.job_turns import init_app, turn
from quart_upsun.fetching.page_metadata import PageMetadata, fetch_page, image_type, read_metadata
from quart_upsun.fetching.public_network import Address, FetchError, Resolver, is_public
from quart_upsun.fetching.turns import MAX_FETCHES_PER_HOST, HostBusyError, Turns, Visit

__all__ = [
    "MAX_FETCHES_PER_HOST",
    "Address",
    "FetchError",
    "Fetched",
    "Fetcher",
    "HostBusyError",
    "PageMetadata",
    "Resolver",
    "Turns",
    "Visit",
    "fetch_page",
    "image_type",
    "init_app",
    "is_public",
    "read_metadata",
    "turn",
]
