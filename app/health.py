"""Is the process alive, and can it serve?"""

import asyncio

from quart import Blueprint, Response, current_app, jsonify

from app import database
from app.http import private
from app.security.limits import unlimited
from app.user.login import everybody

blueprint = Blueprint("health", __name__)


def draining() -> asyncio.Event:
    """Return the event that is set once this process was told to stop.

    Whoever streams ends its stream when it is set; the client comes back to another process.
    """
    event: asyncio.Event = current_app.extensions["draining"]
    return event


@blueprint.get("/livez")
@private
@everybody
@unlimited("no query")
async def livez() -> Response:
    """Answer while the event loop turns. No database: a restart would not mend one."""
    return jsonify(status="alive")


@blueprint.get("/readyz")
@private
@everybody
@unlimited("a refused health check would look like an outage")
async def readyz() -> tuple[Response, int]:
    """Answer 200 only if a page that needs the database would be served now.

    Also while the database is read-only, which the body then tells: pages that only read are
    served, and every other instance has the same database.
    """
    if draining().is_set():
        return jsonify(status="unready", reason="draining"), 503
    try:
        await database.current().gate.check()
        is_writable = await database.current().accepts_changes()
    except database.SchemaBehind as error:
        return jsonify(
            status="unready", reason="schema", database=error.found, needed=error.needed
        ), 503
    except database.Unsanitized as error:
        return jsonify(status="unready", reason="sanitize", environment=error.environment), 503
    except database.Unavailable:
        return jsonify(status="unready", reason="database"), 503
    if not is_writable:
        return jsonify(status="ready", database="read-only"), 200
    return jsonify(status="ready"), 200
