"""Is the process alive, and can it serve?"""

from quart import Blueprint, Response, jsonify

from quart_upsun import database
from quart_upsun.current import current_toolkit
from quart_upsun.policy import no_rate_limit, no_store, public

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
@no_store
@public
@no_rate_limit("no query")
async def livez() -> Response:
    """Answer while the event loop turns. No database: a restart would not mend one."""
    return jsonify(status="alive")


@blueprint.get("/readyz")
@no_store
@public
@no_rate_limit("a refused health check would look like an outage")
async def readyz() -> tuple[Response, int]:
    """Answer 200 only if a page that needs the database would be served now.

    Also while the database is read-only, which the body then tells: pages that only read are
    served, and every other instance has the same database.
    """
    state = current_toolkit()
    if state.draining.is_set():
        return jsonify(status="unready", reason="draining"), 503
    try:
        await state.database.gate.check()
        is_writable = await state.database.accepts_changes()
    except database.SchemaBehindError as error:
        return jsonify(
            status="unready", reason="schema", database=error.found, needed=error.needed
        ), 503
    except database.NotSanitizedError as error:
        return jsonify(status="unready", reason="sanitize", environment=error.environment), 503
    except database.DatabaseUnavailableError:
        return jsonify(status="unready", reason="database"), 503
    if not is_writable:
        return jsonify(status="ready", database="read-only"), 200
    return jsonify(status="ready"), 200
