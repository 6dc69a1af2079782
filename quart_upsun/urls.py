"""Normalize URLs that users enter, and remove tracking parameters."""

import re
from ipaddress import ip_address
from urllib.parse import quote, unquote_plus

import httpx

MAX_URL_LENGTH = 2048
SCHEME_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
HOST_PATTERN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)
DEFAULT_PORTS = {"http": 80, "https": 443}
# Query parameters that identify where a visitor came from and do not change the page.
TRACKING_PARAMETER = re.compile(r"utm_[a-z][a-z_]*|fbclid|gclid|mc_[ce]id|igshid")
URL_WITH_QUERY = re.compile(r"(https?://[^\s?#]+)\?([^\s#]*)", re.IGNORECASE)


def normalize_url(text: str, *, max_length: int = MAX_URL_LENGTH) -> str:
    """Normalize a URL that a user has entered, so that equivalent URLs compare equal.

    The default scheme is https. The result has a lowercase scheme and host, no default port, no
    `..` in the path, no tracking parameters, and no fragment unless it is a client-side route
    (`#/…`, `#!…`).

    Args:
        text: the URL as entered.
        max_length: the maximum length of the result, in characters.

    Raises:
        ValueError: the text is not a valid http or https URL. The message is meant for the user.
    """
    text = text.strip()
    if not text:
        raise ValueError("Enter a URL.")
    if len(text) > max_length:
        raise ValueError(f"The URL must not be longer than {max_length} characters.")
    if not SCHEME_PATTERN.match(text) or re.match(
        r"[^/?#:]+:\d", text
    ):  # `localhost:8000` has no scheme
        text = f"https://{text.lstrip('/')}"
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii").lower().removesuffix(".")
        location = f"[{ip_address(host)}]" if ":" in host else host
    except (httpx.InvalidURL, ValueError):
        raise ValueError("Enter a valid URL.") from None
    if url.scheme not in DEFAULT_PORTS:
        raise ValueError("The URL must start with https:// or http://.")
    if url.userinfo:
        raise ValueError("The URL must not contain a username or password.")
    if "%" in host or (":" not in host and not HOST_PATTERN.fullmatch(host)) or len(host) > 253:
        raise ValueError("Enter a valid URL.")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError("Enter a valid URL.")
    if url.port is not None and url.port != DEFAULT_PORTS[url.scheme]:
        location += f":{url.port}"
    path, _, query = url.raw_path.decode("ascii").partition("?")
    if re.search(r"/\.\.?(?:[?#]|\Z)", text) and not path.endswith("/"):
        path += "/"  # `.` and `..` name directories
    result = f"{url.scheme}://{location}{path or '/'}"
    if query := _clean_query(query):
        result += f"?{query}"
    fragment = text.partition("#")[2]  # `url.fragment` is already decoded
    if fragment.startswith(("/", "!")):
        result += "#" + quote(fragment, safe="!#$%&'()*+,-./:;=?@[]^_{|}~")
    if len(result) > max_length:  # percent-encoding makes it longer
        raise ValueError(f"The URL must not be longer than {max_length} characters.")
    return result


def remove_tracking_parameters(text: str) -> str:
    """Remove tracking parameters from all URLs in a text."""

    def cut(match: re.Match[str]) -> str:
        query = _clean_query(match[2])
        return f"{match[1]}?{query}" if query else match[1]

    return URL_WITH_QUERY.sub(cut, text)


def _clean_query(query: str) -> str:
    """Remove tracking parameters from a query string, and leave every other byte unchanged."""
    return "&".join(
        piece
        for piece in query.split("&")
        if not TRACKING_PARAMETER.fullmatch(unquote_plus(piece.partition("=")[0]))
    )
