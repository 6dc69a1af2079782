"""URLs that users type, in one normal form and without tracking parameters."""

import re
from ipaddress import ip_address
from urllib.parse import quote, unquote_plus

import httpx

MAX_URL_LENGTH = 2048
SCHEME_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
HOST_PATTERN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)
DEFAULT_PORTS = {"http": 80, "https": 443}
# Parameters that say where a visitor came from, and nothing about the page.
TRACKING_PARAMETER = re.compile(r"utm_[a-z][a-z_]*|fbclid|gclid|mc_[ce]id|igshid")
URL_WITH_QUERY = re.compile(r"(https?://[^\s?#]+)\?([^\s#]*)", re.IGNORECASE)


def normalize_url(text: str, *, max_length: int = MAX_URL_LENGTH) -> str:
    """Return the form of a URL that a user has typed, so that equal ones compare equal.

    The scheme is https if none is given. Small letters for scheme and host, no default port, no
    `..` in the path, no parameters that only track, and no fragment unless it is an application's
    route (`#/…`, `#!…`).

    Args:
        text: as typed.
        max_length: of the result, in characters.

    Raises:
        ValueError: a sentence that says why it is not the URL of a page.
    """
    text = text.strip()
    if not text:
        raise ValueError("Please enter an address.")
    if len(text) > max_length:
        raise ValueError(f"The address is longer than {max_length} characters.")
    if not SCHEME_PATTERN.match(text) or re.match(
        r"[^/?#:]+:\d", text
    ):  # `localhost:8000` has no scheme
        text = f"https://{text.lstrip('/')}"
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii").lower().removesuffix(".")
        location = f"[{ip_address(host)}]" if ":" in host else host
    except (httpx.InvalidURL, ValueError):
        raise ValueError("This is not a valid address.") from None
    if url.scheme not in DEFAULT_PORTS:
        raise ValueError("The address must begin with https:// or http://.")
    if url.userinfo:
        raise ValueError("The address must not contain a user name or password.")
    if "%" in host or (":" not in host and not HOST_PATTERN.fullmatch(host)) or len(host) > 253:
        raise ValueError("This is not a valid address.")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError("This is not a valid address.")
    if url.port is not None and url.port != DEFAULT_PORTS[url.scheme]:
        location += f":{url.port}"
    path, _, query = url.raw_path.decode("ascii").partition("?")
    if re.search(r"/\.\.?(?:[?#]|\Z)", text) and not path.endswith("/"):
        path += "/"  # the dots stand for a directory
    result = f"{url.scheme}://{location}{path or '/'}"
    if query := _clean_query(query):
        result += f"?{query}"
    fragment = text.partition("#")[2]  # httpx has decoded its own
    if fragment.startswith(("/", "!")):
        result += "#" + quote(fragment, safe="!#$%&'()*+,-./:;=?@[]^_{|}~")
    if len(result) > max_length:  # escaped it may be longer
        raise ValueError(f"The address is longer than {max_length} characters.")
    return result


def remove_tracking_parameters(text: str) -> str:
    """Cut the parameters that only track out of the addresses in a text."""

    def cut(match: re.Match[str]) -> str:
        query = _clean_query(match[2])
        return f"{match[1]}?{query}" if query else match[1]

    return URL_WITH_QUERY.sub(cut, text)


def _clean_query(query: str) -> str:
    """Cut the parameters that only track out of a query, and leave every other byte as it is."""
    return "&".join(
        piece
        for piece in query.split("&")
        if not TRACKING_PARAMETER.fullmatch(unquote_plus(piece.partition("=")[0]))
    )
