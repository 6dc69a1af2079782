"""The production server: `python -m app.server`."""

import sys
from collections.abc import Callable

from quart import Quart

from app import create_app
from app.settings import Settings, load_settings
from quart_upsun.server import serve


def main(factory: Callable[[Settings], Quart] = create_app) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code."""
    return serve.main(factory, load_settings)


if __name__ == "__main__":
    sys.exit(main())
