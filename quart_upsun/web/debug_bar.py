"""A bar at the end of each page on a laptop: queries, render time, templates, policy, cache, jobs.

`QuartUpsun` imports this module only where tracebacks are shown: with `FLASK_DEBUG=1`, and never on
Upsun. It has no script and no inline style, so that the Content-Security-Policy stays as it is.
"""

import inspect
import re
import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import greenlet  # type: ignore[import-untyped]
from quart import Blueprint, Quart, Response, current_app, render_template, request
from quart.signals import before_render_template, template_rendered
from quart.wrappers.response import DataBody

from quart_upsun.database import Database
from quart_upsun.policy import no_rate_limit, no_store, policy_of, public
from quart_upsun.settings import Settings

blueprint = Blueprint("debug_bar", __name__, url_prefix="/dev")

MAX_QUERIES = 200  # shown; all are counted
ENQUEUE = re.compile(r"INSERT INTO \S*pgqueuer\b", re.IGNORECASE)
STYLE = """\
.debug-bar { all: revert; position: sticky; bottom: 0; z-index: 2000; font: 14px/1.4 monospace;
  background: #fff; color: #1b1b1b; border-top: 2px solid #0a58ca; }
.debug-bar summary { padding: 4px 12px; cursor: pointer; }
.debug-bar summary:focus-visible { outline: 3px solid #0a58ca; outline-offset: -3px; }
.debug-bar div { max-height: 50vh; overflow: auto; padding: 4px 12px 12px; }
.debug-bar table { border-collapse: collapse; width: 100%; }
.debug-bar caption { caption-side: top; color: inherit; text-align: left; font-weight: bold; }
.debug-bar th, .debug-bar td { padding: 2px 12px 2px 0; text-align: left; vertical-align: top; }
.debug-bar code { color: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  .debug-bar { background: #16181b; color: #f1f1f1; border-color: #6ea8fe; }
  .debug-bar summary:focus-visible { outline-color: #6ea8fe; }
}
@media print { .debug-bar { display: none; } }
"""


@dataclass
class Query:
    """A statement, without its values."""

    text: str
    seconds: float
    origin: str
    """The file and line in the application's package, or an empty string."""


@dataclass
class Record:
    """What happened during a request."""

    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    status: int = 0
    queries: list[Query] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    render_seconds: float = 0.0
    render_started: float = 0.0
    jobs: list[str] = field(default_factory=list)


current_record: ContextVar[Record | None] = ContextVar("debug_record", default=None)


class DebugBar:
    """Records requests of an application, and adds the bar to its pages."""

    def __init__(self, app: Quart) -> None:
        self._app = app
        self._redirects: deque[Record] = deque(maxlen=1)

    async def begin(self) -> None:
        """Begin to record a request."""
        current_record.set(Record(request.method, request.path))

    async def before_render(self, sender: Quart, **_: Any) -> None:
        """Note when a template begins to render."""
        if record := current_record.get():
            record.render_started = time.perf_counter()

    async def after_render(self, sender: Quart, *, template: Any, **_: Any) -> None:
        """Record a template and how long it took."""
        if record := current_record.get():
            record.templates.append(template.name or "a string")
            record.render_seconds += time.perf_counter() - record.render_started

    async def complete(self, response: Response) -> Response:
        """Add the bar to an HTML page. Streams and other responses stay as they are."""
        record = current_record.get()
        current_record.set(None)  # the bar does not record itself
        if record is None or request.endpoint in {"static", "debug_bar.style"}:
            return response
        record.seconds = time.perf_counter() - record.started
        record.status = response.status_code
        if 300 <= response.status_code < 400 and response.location:
            self._redirects.append(record)  # shown on the page that follows
        if response.mimetype != "text/html" or not isinstance(response.response, DataBody):
            return response
        page = await response.get_data(as_text=True)
        before, tag, after = page.rpartition("</body>")
        if not tag or "Content-Encoding" in response.headers:
            return response
        records = [record, *self._redirects]
        self._redirects.clear()
        bar = await render_template(
            "dev/debug_bar.html",
            records=records,
            max_queries=MAX_QUERIES,
            endpoint=request.endpoint,
            policy=policy_of(current_app.view_functions.get(request.endpoint or "")),
            cache_control=response.headers.get("Cache-Control", "none"),
        )
        response.set_data(f"{before}{bar}{tag}{after}")
        response.headers.pop("ETag", None)  # of the page without the bar
        return response

    def add_query(
        self, text: str, seconds: float, parameters: Any, error: BaseException | None
    ) -> None:
        """Record a statement; a `QueryObserver`."""
        record = current_record.get()
        if record is None:
            return
        record.queries.append(Query(" ".join(text.split()), seconds, self._origin()))
        if ENQUEUE.search(text):
            # Of PgQueuer's arrays, the first with texts has the names of the tasks.
            arrays = (each for each in parameters if isinstance(each, list | tuple) and each)
            record.jobs += next((a for a in arrays if isinstance(a[0], str)), ["a job"])

    def _origin(self) -> str:
        """Return the innermost frame in the application's package.

        SQLAlchemy executes in a greenlet; the frames of the view are those of its parent.
        """
        package = f"{self._app.root_path}/"
        own = inspect.currentframe()
        parent = greenlet.getcurrent().parent
        for start in (own, parent.gr_frame if parent is not None else None):
            frame = start
            while frame is not None:
                name = frame.f_code.co_filename
                if name.startswith(package):
                    return f"{name.removeprefix(package)}:{frame.f_lineno}"
                frame = frame.f_back
        return ""


def init_app(app: Quart, settings: Settings, database: Database) -> None:
    """Add the bar to the pages of an application. Call it before other `after_request` hooks.

    Raises:
        RuntimeError: the application runs on Upsun.
    """
    if settings.platform is not None:
        raise RuntimeError("The debug bar must not run on Upsun.")
    bar = DebugBar(app)
    app.before_request(bar.begin)
    app.after_request(bar.complete)
    before_render_template.connect(bar.before_render, app, weak=False)
    template_rendered.connect(bar.after_render, app, weak=False)
    app.register_blueprint(blueprint)

    database.query_observers.append(bar.add_query)


@blueprint.get("/debug-bar.css")
@no_store
@public
@no_rate_limit("on laptops only")
async def style() -> Response:
    """Return the style sheet of the bar."""
    return Response(STYLE, content_type="text/css; charset=utf-8")
