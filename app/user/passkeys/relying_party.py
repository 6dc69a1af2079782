"""The relying party: the host that passkeys belong to, and the origin that may ask for them."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from quart_upsun.logging import get_logger

log = get_logger(__name__)

LOCALHOST = "localhost"


@dataclass(frozen=True)
class RelyingParty:
    """Where passkeys work."""

    id: str
    """The host name, to which authenticators bind a passkey."""
    origin: str
    """Scheme, host and port of the pages that may ask for a passkey."""


def relying_party_of(public_origin: str) -> RelyingParty | None:
    """Return the relying party of a site, or None if browsers do not allow passkeys there.

    The id is the whole host, not its parent domain, so that neither a preview nor another project
    under the same domain can use the passkeys of production. An IP address cannot have passkeys: on
    a laptop, where the site is at 127.0.0.1, they work at `localhost`.
    https://www.w3.org/TR/webauthn-3/#relying-party-identifier

    Args:
        public_origin: scheme and host of the site, as `Settings.origin` has it; may be empty.
    """
    url = urlsplit(public_origin)
    host = url.hostname or ""
    if _is_own_address(host):
        port = f":{url.port}" if url.port else ""
        return RelyingParty(LOCALHOST, f"{url.scheme}://{LOCALHOST}{port}")
    is_local = host == LOCALHOST or host.endswith(f".{LOCALHOST}")
    if not host or _is_address(host) or not (url.scheme == "https" or is_local):
        log.warning(
            "passkeys are off",
            reason="browsers allow them only at a host name with HTTPS, or at localhost",
            origin=public_origin,
        )
        return None
    return RelyingParty(host, public_origin)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_own_address(host: str) -> bool:
    """Tell whether a host is an address of this machine: 127.0.0.1, ::1, or any (0.0.0.0, ::)."""
    if not _is_address(host):
        return False
    address = ip_address(host)
    return address.is_loopback or address.is_unspecified
