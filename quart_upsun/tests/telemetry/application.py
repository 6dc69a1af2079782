"""The sample application with views and jobs for telemetry, on the real server.

`python -m quart_upsun.tests.telemetry.application [worker]`. It fetches the page with the URL in
`PAGE`.
"""

import os
import sys
from typing import Any

from jinja2 import ChoiceLoader, DictLoader
from opentelemetry import trace
from quart import Quart, request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.fetching import Fetcher
from quart_upsun.identity import set_session_user
from quart_upsun.jobs.queue import JobContext, PermanentJobError, Task, enqueue
from quart_upsun.logging import get_logger
from quart_upsun.mail import Letter, send_later
from quart_upsun.server import serve as server
from quart_upsun.server import worker
from quart_upsun.tests.sample import Settings, create_app, load, upsun

log = get_logger(__name__)

NAME = "quart_upsun.tests.telemetry.application"


class User:
    id = 7
    username = "ada"


async def preview(running: JobContext) -> None:
    """Query the database, record a span of its own, and fetch a page."""
    async with running.database.read() as session:
        await session.scalar(text("SELECT count(*) FROM mails"))
    log.info("previewing")
    with trace.get_tracer("app").start_as_current_span("own"):
        pass
    async with Fetcher(allowed=lambda *_: True, ports=range(65536)) as fetcher:
        await fetcher.get(os.environ["PAGE"])


async def fail(running: JobContext) -> None:
    raise PermanentJobError(f"cannot use {running.data['value']}", "bad value")


PREVIEW, FAIL = Task("preview", preview), Task("fail", fail)


async def compose(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return Letter("ada@example.com", "greeting")


def factory(settings: Settings) -> Quart:
    app = create_app(settings)
    state = app.extensions["quart_upsun"]
    state.jobs.register(PREVIEW, FAIL)
    state.mail.composers["greeting"] = compose
    templates = {"mail/greeting.txt": "Subject: Hello\n\nHello.\n"}
    loader: Any = app.jinja_env.loader
    app.jinja_env.loader = ChoiceLoader([DictLoader(templates), loader])
    app.add_url_rule("/previews/<name>", view_func=enqueue_preview, methods=["POST"])
    app.add_url_rule("/mails", view_func=enqueue_mail, methods=["POST"])
    app.add_url_rule("/failures", view_func=enqueue_failure, methods=["POST"])
    app.add_url_rule("/crash/<token>", view_func=crash, methods=["GET", "POST"])
    app.add_url_rule("/process", view_func=process)
    return app


async def enqueue_preview(name: str) -> str:
    """Read with a statement of the fast path, and enqueue a job."""
    log.info("enqueueing")
    async with upsun.database.direct() as connection:
        await connection.fetchval("SELECT count(*) FROM mails WHERE kind = $1", name)
    async with upsun.database.write() as session:
        await enqueue(session, PREVIEW)
    return "enqueued"


async def enqueue_mail() -> str:
    async with upsun.database.write() as session:
        await send_later(session, "greeting")
    return "enqueued"


async def enqueue_failure() -> str:
    async with upsun.database.write() as session:
        await enqueue(session, FAIL, value=(await request.form)["value"])
    return "enqueued"


async def crash(token: str) -> str:
    """Raise an exception whose message contains all input."""
    set_session_user(User())
    secret_local = request.headers.get("Cookie")  # noqa: F841
    raise ValueError(f"cannot use {token!r}, {dict(request.args)}, {dict(await request.form)}")


async def process() -> str:
    return str(os.getpid())


if __name__ == "__main__":
    sys.exit((worker if "worker" in sys.argv else server).main(factory, load))
