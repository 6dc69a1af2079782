"""The operations page and its event stream."""

from datetime import UTC, datetime
from typing import Literal

from quart import Blueprint, Response, current_app, render_template, request
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.operations import page
from app.operations.updates import Updates
from app.user.login import admin_required, logged_in_user
from quart_upsun.current import current_toolkit
from quart_upsun.live.events import newest_event
from quart_upsun.live.views import stream
from quart_upsun.metrics import series
from quart_upsun.metrics.charts import number
from quart_upsun.policy import no_rate_limit, no_store

blueprint = Blueprint("operations", __name__, url_prefix="/admin/operations")

READERS = {"hour": series.read_last_hour, "weeks": series.read_two_weeks}


@blueprint.get("/")
@no_store
@admin_required
@no_rate_limit("reads at most a few hundred rows, administrators only")
async def index() -> ResponseReturnValue:
    """Show the metrics of all processes, for the last hour or two weeks."""
    span_name: Literal["hour", "weeks"] = "weeks" if request.args.get("span") == "weeks" else "hour"
    now = datetime.now(UTC)
    async with database.read(exact=True) as session:
        span = await READERS[span_name](session, now)
        after = await newest_event(session, logged_in_user().id)
    return await render_template(
        "operations/index.html",
        span_name=span_name,
        span=span,
        figures=page.figures(span),
        charts=page.charts(span),
        routes=page.slowest_routes(span.total),
        tasks=sorted(span.total.tasks.items()),
        after=after,
        now_utc=now,
        number=number,
        format_time=page.format_minute if span_name == "hour" else page.format_hour,
        format_axis=page.format_minute if span_name == "hour" else page.format_day,
        is_collected=current_toolkit().settings.metrics,
    )


@blueprint.get("/events/")
@no_store
@admin_required
@no_rate_limit("concurrent streams are limited instead")
async def events() -> Response:
    """Stream an event whenever there is new data."""
    user = logged_in_user()
    response = await stream(user.id, user_since=user.created_at)
    updates: Updates = current_app.extensions["operations_updates"]
    updates.watch(user.id)
    return response
