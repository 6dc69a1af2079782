"""A worker for tests: `python -m tests.browser.worker PORT` fetches from that local port.

The production worker fetches only from public addresses, and no setting changes that.
"""

import sys
from collections.abc import AsyncGenerator

from quart import Quart

from app import create_app
from app.settings import Settings, load_settings
from quart_upsun.fetching import Fetcher
from quart_upsun.server import worker


def factory(settings: Settings) -> Quart:
    port = int(sys.argv[1])
    app = create_app(settings)

    @app.while_serving
    async def fetcher() -> AsyncGenerator[None, None]:
        fetcher = Fetcher(allowed=lambda _, number: number == port, ports={port})
        async with fetcher as app.extensions["fetcher"]:
            yield

    return app


if __name__ == "__main__":
    sys.exit(worker.main(factory, load_settings))
