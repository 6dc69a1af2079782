"""Which hosts and which other sites a request may come from."""

from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import BadRequest, Forbidden

# The container and the rehearsal ask these by address.
HEALTH_PATHS = frozenset({"/livez", "/readyz"})


def canonical_host(host: str) -> str:
    """Return a host in the one form in which two can be compared.

    Without the ports that addresses leave out, and without the dot that ends a name in full.
    """
    host = host.lower()
    name, _, port = host.rpartition(":")
    if not port.isdecimal():  # none was given; what follows the colon is part of an IPv6 address
        name, port = host, ""
    name = name.removesuffix(".")
    return name if port in {"", "80", "443"} else f"{name}:{port}"


def is_cross_site(
    fetch_site: str | None, origin: str | None, own: str, public: str | None = None
) -> bool:
    """Tell whether an unsafe request was caused by another site.

    Args:
        fetch_site: `Sec-Fetch-Site`, which every current browser sends and no page can set.
        origin: `Origin`, for browsers without it.
        own: scheme and host of this site, as the request has it.
        public: the same as browsers have it, where a proxy changes it on the way.

    A client that sends neither is no browser, and has no cookies that another site could abuse.
    `same-site` is refused: the previews of all projects share one parent domain.
    """
    if fetch_site is not None:
        return fetch_site not in {"same-origin", "none"}
    return origin is not None and origin not in {own, public}


def require_known_host(
    incoming: BaseRequestWebsocket, hosts: frozenset[str], below: tuple[str, ...]
) -> None:
    if not hosts or incoming.path in HEALTH_PATHS:
        return
    host = canonical_host(incoming.host)
    if host not in hosts and not host.endswith(below):
        raise BadRequest("This host is none of the site's.")


def require_same_site(incoming: BaseRequestWebsocket, public: str | None) -> None:
    # The host has been looked at, and no page can choose the one that its browser sends. So this
    # also holds on a site with several hosts.
    scheme = {"ws": "http", "wss": "https"}.get(incoming.scheme, incoming.scheme)
    if is_cross_site(
        incoming.headers.get("Sec-Fetch-Site"),
        incoming.headers.get("Origin"),
        f"{scheme}://{incoming.host}",
        public,
    ):
        raise Forbidden("This request came from another site.")
