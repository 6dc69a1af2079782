"""The example of the README: a page with a rate limit, a background job and a server."""

import asyncio
import sys

from quart import Quart
from sqlalchemy import text

from quart_upsun import QuartUpsun
from quart_upsun.database import create_schema, read, write
from quart_upsun.jobs import JobContext, Task, enqueue
from quart_upsun.policy import public
from quart_upsun.security import Limit, rate_limit
from quart_upsun.server import serve
from quart_upsun.settings import Settings, load_settings

upsun = QuartUpsun()


async def print_greeting(job: JobContext) -> None:
    print(f"Hello, {job.data['name']}!", flush=True)


GREET = Task("greet", print_greeting)


def create_app(settings: Settings) -> Quart:
    app = Quart(__name__, static_folder=None)
    upsun.init_app(app, settings).jobs.register(GREET)

    @app.get("/")
    @public
    @rate_limit(Limit("home", count=3, seconds=60))
    async def home() -> str:
        async with read() as session:
            return f"It is {await session.scalar(text('SELECT now()'))}."

    @app.post("/greet/<name>")
    @public
    async def greet(name: str) -> str:
        async with write() as session:
            await enqueue(session, GREET, name=name)
        return "Job enqueued.\n"

    return app


if __name__ == "__main__":
    if sys.argv[1:] == ["create-schema"]:
        settings = load_settings(Settings)
        sys.exit(asyncio.run(create_schema(settings.database_url, settings.identity)))
    sys.exit(serve.main(create_app, lambda: load_settings(Settings)))
