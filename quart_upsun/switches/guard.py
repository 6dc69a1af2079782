"""Refuse requests while a switch is on."""

from quart import Quart, current_app, request, websocket
from quart.wrappers.base import BaseRequestWebsocket

from quart_upsun.policy import policy_of
from quart_upsun.switches.state import MAINTENANCE, READ_ONLY, SwitchedOffError, Switches

SAFE_METHODS = {"GET", "HEAD", "OPTIONS", "TRACE"}
# Blueprints and endpoints that maintenance never refuses.
HEALTH, STATIC = "health", "static"


def init_app(app: Quart, switches: Switches) -> None:
    """Check each request and each WebSocket handshake against the switches."""

    @app.before_request
    async def check_request() -> None:
        if not switches.is_known and request.blueprint != HEALTH:
            await switches.wait()
        if switches.active:
            await require_open(switches, request, is_safe=request.method in SAFE_METHODS)

    @app.before_websocket
    async def check_handshake() -> None:
        if not switches.is_known:
            await switches.wait()
        if switches.active:
            # A handshake is a GET request; what its messages may do is up to the view.
            await require_open(switches, websocket, is_safe=True)


async def require_open(
    switches: Switches, incoming: BaseRequestWebsocket, *, is_safe: bool
) -> None:
    """Let a request pass, or refuse it.

    Raises:
        SwitchedOffError: maintenance or read-only mode refuses the request.
    """
    if incoming.blueprint == HEALTH or incoming.endpoint == STATIC:
        return
    view = current_app.view_functions.get(incoming.endpoint or "")
    if policy_of(view).is_always_open:
        return
    maintenance = switches.active.get(MAINTENANCE)
    if maintenance is not None and not await switches.is_exempt():
        raise SwitchedOffError(maintenance)
    read_only = switches.active.get(READ_ONLY)
    # Without a rule, the client gets 404 or 405 as always.
    if read_only is not None and not is_safe and incoming.url_rule is not None:
        raise SwitchedOffError(read_only)
