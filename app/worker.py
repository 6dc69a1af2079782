"""The background worker, which runs jobs: `python -m app.worker`."""

import sys
from collections.abc import Callable

from quart import Quart

from app import create_app
from app.settings import Settings, load_settings
from quart_upsun.server import worker


def main(factory: Callable[[Settings], Quart] = create_app) -> int:
    """Run jobs until SIGTERM or SIGINT, and return the exit code."""
    return worker.main(factory, load_settings)


if __name__ == "__main__":
    sys.exit(main())
