"""What users type, in the one form that is kept: addresses and tags."""

import re
from ipaddress import ip_address
from urllib.parse import quote, unquote_plus

import httpx

from app.links.models import MAX_TAGS, TAG_LENGTH, URL_LENGTH
from quart_upsun.text import MARKS, fold

SCHEME_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
HOST_PATTERN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)
DEFAULT_PORTS = {"http": 80, "https": 443}
# Parameters that say where a visitor came from, and nothing about the page.
TRACKING_PARAMETER = re.compile(r"utm_[a-z][a-z_]*|fbclid|gclid|mc_[ce]id|igshid")
URL_WITH_QUERY = re.compile(r"(https?://[^\s?#]+)\?([^\s#]*)", re.IGNORECASE)
TAG_SEPARATORS = re.compile(r"[\s,;#\u060c\u3001]+")
# Letters and numbers, the marks that belong to letters in Hindi, Thai or pointed Hebrew, and what
# joins letters in Persian. A tag begins and ends with something to be seen.
_LETTERS = f"\\w{MARKS}"
# What cannot be seen in a tag makes no other tag of it.
INVISIBLE_CHARACTERS = re.compile("[\u00ad\u034f\u200b\u200e\u200f\u2060\ufe00-\ufe0f]")
_JOINERS = "\u200c\u200d"
TAG_PATTERN = re.compile(
    rf"(?=.{{1,{TAG_LENGTH}}}\Z)[\w-](?:[{_LETTERS}{_JOINERS}-]*[{_LETTERS}-])?"
)
INVALID_TAG_CHARACTERS = re.compile(rf"[^{_LETTERS}{_JOINERS}\s-]+")


def normalize_url(text: str) -> str:
    """Return the form of an address under which it is kept once.

    The scheme is https if none is given. Small letters for scheme and host, no default port, no
    `..` in the path, no parameters that only track, and no fragment unless it is an application's
    route (`#/…`, `#!…`).

    Raises:
        ValueError: a sentence that says why it is no address of a page.
    """
    text = text.strip()
    if not text:
        raise ValueError("Please enter an address.")
    if len(text) > URL_LENGTH:
        raise ValueError(f"The address is longer than {URL_LENGTH} characters.")
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
    if len(result) > URL_LENGTH:  # escaped it may be longer
        raise ValueError(f"The address is longer than {URL_LENGTH} characters.")
    return result


def parse_tags(text: str) -> list[str]:
    """Return the tags of a line: small letters, sorted, each once.

    Raises:
        ValueError: a sentence that says which is none.
    """
    found = set()
    for word in TAG_SEPARATORS.split(_fold_tag(text)):
        if not word:
            continue
        if not TAG_PATTERN.fullmatch(word):
            raise ValueError(
                "A tag consists of letters, digits, - and _,"
                f" and has at most {TAG_LENGTH} characters."
            )
        found.add(word)
    if len(found) > MAX_TAGS:
        raise ValueError(f"A link has at most {MAX_TAGS} tags.")
    return sorted(found)


def parse_tag(text: str) -> str:
    """Return a tag in the form that is kept.

    Raises:
        ValueError: it is none, or several.
    """
    found = parse_tags(text)
    if len(found) != 1:
        raise ValueError("Each tag is one word.")
    return found[0]


def tag_from_text(text: str) -> str | None:
    """Turn a folder name, or any other words, into a tag.

    Return None if nothing is left of it.
    """
    plain = _fold_tag(text[: 4 * TAG_LENGTH])  # a single character can turn into eighteen
    if TAG_PATTERN.fullmatch(plain):
        return plain
    # What is left may compose anew.
    tag = "-".join(_fold_tag(INVALID_TAG_CHARACTERS.sub("", plain)).split())[:TAG_LENGTH].strip(
        f"-{_JOINERS}"
    )
    return tag if TAG_PATTERN.fullmatch(tag) else None


def _fold_tag(text: str) -> str:
    """Return the form in which tags are compared."""
    return fold(INVISIBLE_CHARACTERS.sub("", text))


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
