"""Health checks: `/livez` for the process, `/readyz` for the application."""

from quart import Blueprint, Response, jsonify

from quart_upsun import database
from quart_upsun.current import current_toolkit
from quart_upsun.policy import no_rate_limit, no_store, public

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
@no_store
@public
@no_rate_limit("no database query")
async def livez() -> Response:
    """Return 200 while the event loop runs.

    It does not check the database, because restarting the process would not fix an outage.
    """
    return jsonify(status="alive")


@blueprint.get("/readyz")
@no_store
@public
@no_rate_limit("a rejected health check would look like an outage")
async def readyz() -> tuple[Response, int]:
    """Return 200 if pages that need the database can be served, else 503 with a reason.

    A read-only database counts as ready, and the body says so: pages that only read work, and all
    other instances use the same database.
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
