"""Host header validation and cross-site request protection."""

from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import BadRequest, Forbidden

# Health checks use the container's IP address as the host.
HEALTH_PATHS = frozenset({"/livez", "/readyz"})


def canonical_host(host: str) -> str:
    """Normalize a Host header for comparison: lowercase, no default port, no trailing dot."""
    host = host.lower()
    name, _, port = host.rpartition(":")
    if not port.isdecimal():  # no port: the colon, if any, is part of an IPv6 address
        name, port = host, ""
    name = name.removesuffix(".")
    return name if port in {"", "80", "443"} else f"{name}:{port}"


def is_cross_site(
    fetch_site: str | None, origin: str | None, own: str, public: str | None = None
) -> bool:
    """Tell whether another site caused an unsafe request (cross-site request forgery).

    A client that sends neither header is not a browser, so it has no cookies to abuse. `same-site`
    counts as cross-site, because the previews of all Upsun projects share a parent domain.

    Args:
        fetch_site: the `Sec-Fetch-Site` header. All current browsers send it, and pages cannot set
            it.
        origin: the `Origin` header, for browsers without `Sec-Fetch-Site`.
        own: the origin of this site according to the request.
        public: the origin of this site in browsers, if a proxy changes the scheme or host.
    """
    if fetch_site is not None:
        return fetch_site not in {"same-origin", "none"}
    return origin is not None and origin not in {own, public}


def require_known_host(
    incoming: BaseRequestWebsocket, hosts: frozenset[str], suffixes: tuple[str, ...]
) -> None:
    """Reject a request with an unknown Host header. Health checks accept any host.

    Args:
        incoming: the request or WebSocket handshake.
        hosts: the known hosts in canonical form. If empty, all hosts are accepted.
        suffixes: accept all hosts that end with one of these, such as `.example.com`.

    Raises:
        BadRequest: the host is unknown.
    """
    if not hosts or incoming.path in HEALTH_PATHS:
        return
    host = canonical_host(incoming.host)
    if host not in hosts and not host.endswith(suffixes):
        raise BadRequest("Unknown host.")


def require_same_site(incoming: BaseRequestWebsocket, public: str | None) -> None:
    """Reject a cross-site request.

    Raises:
        Forbidden: another site caused the request.
    """
    # The Host header was validated before, and pages cannot choose it. So comparing with the
    # request's own host is safe on a site with several hosts, too.
    scheme = {"ws": "http", "wss": "https"}.get(incoming.scheme, incoming.scheme)
    if is_cross_site(
        incoming.headers.get("Sec-Fetch-Site"),
        incoming.headers.get("Origin"),
        f"{scheme}://{incoming.host}",
        public,
    ):
        raise Forbidden("Cross-site request rejected.")
