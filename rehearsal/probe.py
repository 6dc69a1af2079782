"""Request pages and assets of the deployed application through router and web server."""

import re
import secrets
from collections.abc import Iterable
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx

from rehearsal.findings import Finding, Severity
from rehearsal.project import Project

STAGE = "probe"
# `rel` values of links to a page's own files, as opposed to other pages.
RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "apple-touch-icon"}
COMPRESSED = (".css", ".js", ".svg")
MIN_COMPRESSED_BYTES = 1024  # smaller files are not worth compressing
IMMUTABLE_SECONDS = 30 * 24 * 3600


class Assets(HTMLParser):
    """Collect the URLs of a page's assets."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in {"script", "img", "source", "video", "audio"} and "src" in values:
            self.names.append(values["src"])
        elif tag == "link" and RELATIONS & set(values.get("rel", "").lower().split()):
            self.names.append(values.get("href", ""))


async def probe(address: str, project: Project, *, with_files: bool) -> tuple[list[Finding], str]:
    """Check pages, assets, readiness and a missing page.

    Args:
        address: the router's URL.
        project: names the pages.
        with_files: whether there is a web server that serves the files.

    Returns:
        The findings, and a summary of what was checked.
    """
    found: list[Finding] = []
    assets = 0
    async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
        for number, page in enumerate(project.pages):
            response = await get(client, page, found)
            if response is None:
                continue
            if response.status_code != 200:
                found.append(
                    Finding(
                        STAGE,
                        f"{page} responds with {response.status_code}",
                        consequence="visitors see an error",
                        fix="fix the page, or correct `pages` in [tool.rehearsal] in"
                        " pyproject.toml",
                        excerpt=first_lines(response.text),
                    )
                )
            elif number == 0 and with_files:
                assets = await check_assets(client, page, response, found)
        if project.ready:
            await check_readiness(client, project.ready, found)
        await check_missing_page(client, found)
    pages = count(len(project.pages), "page")
    return found, f"{pages}, {count(assets, 'asset')}, a missing page"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if necessary."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def get(client: httpx.AsyncClient, path: str, found: list[Finding]) -> httpx.Response | None:
    """Send a GET request; add a finding and return None if there is no HTTP response."""
    try:
        return await client.get(path, headers={"Accept-Encoding": "br, gzip"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found.append(Finding(STAGE, f"{path} does not respond: {type(error).__name__}"))
        return None


async def check_readiness(client: httpx.AsyncClient, path: str, found: list[Finding]) -> None:
    """Check that the readiness URL responds with 200."""
    response = await get(client, path, found)
    if response is not None and response.status_code != 200:
        found.append(
            Finding(
                STAGE,
                f"{path} responds with {response.status_code} after the deploy",
                consequence="the application reports that it cannot serve requests",
                excerpt=first_lines(response.text),
            )
        )


async def check_missing_page(client: httpx.AsyncClient, found: list[Finding]) -> None:
    """Check that a page that does not exist responds with 404."""
    path = f"/rehearsal-{secrets.token_hex(4)}"
    response = await get(client, path, found)
    if response is not None and response.status_code != 404:
        found.append(
            Finding(
                STAGE,
                f"a page that does not exist responds with {response.status_code} instead of 404",
                severity=Severity.ERROR if response.status_code >= 500 else Severity.WARNING,
            )
        )


async def check_assets(
    client: httpx.AsyncClient, page: str, response: httpx.Response, found: list[Finding]
) -> int:
    """Check the assets of a page; return their number."""
    parser = Assets()
    parser.feed(response.text)
    names = sorted(set(own(parser.names, str(client.base_url), page)))
    for name in names:
        asset = await get(client, name, found)
        if asset is None:
            continue
        if asset.status_code != 200:
            found.append(
                Finding(
                    STAGE,
                    f"{page} uses {name}, which responds with {asset.status_code}",
                    consequence="visitors see the page without it",
                    fix="create the file in the build hook, and check that no mount hides it",
                )
            )
            continue
        found += check_headers(name, asset)
    return len(names)


def own(names: Iterable[str], address: str, page: str) -> Iterable[str]:
    """Yield the paths of the URLs that are on this site."""
    for name in names:
        try:
            url = urlsplit(urljoin(urljoin(address, page), name))
        except ValueError:  # an invalid URL, which browsers ignore
            continue
        if url.netloc == urlsplit(address).netloc:
            yield f"{url.path}?{url.query}" if url.query else url.path


def check_headers(name: str, asset: httpx.Response) -> list[Finding]:
    """Check a file's compression and Cache-Control header."""
    found = []
    size = len(asset.content)
    if (
        name.endswith(COMPRESSED)
        and size > MIN_COMPRESSED_BYTES
        and "content-encoding" not in asset.headers
    ):
        found.append(
            Finding(
                STAGE,
                f"{name} is served uncompressed ({size} bytes)",
                consequence="pages load more slowly",
                fix="create a .gz and a .br file next to it in the build hook",
                severity=Severity.WARNING,
            )
        )
    cache = asset.headers.get("cache-control", "")
    kept = re.search(r"max-age=(\d+)", cache)
    if re.search(r"[-.][0-9A-Za-z]{8,}\.", name) and (
        kept is None or int(kept[1]) < IMMUTABLE_SECONDS
    ):
        found.append(
            Finding(
                STAGE,
                f"{name} has a digest in its name, but its max-age is"
                f" {f'only {kept[1]} s' if kept else 'not set'}",
                consequence="browsers request the unchanged file again and again",
                fix="add a rule with `expires: 1y` or a Cache-Control header to the location",
                severity=Severity.WARNING,
            )
        )
    return found


async def describe_responses(address: str, paths: Iterable[str], *, host: str) -> str:
    """Return the current responses of some pages, in one line."""
    seen = []
    async with httpx.AsyncClient(
        base_url=address, timeout=30, trust_env=False, headers={"Host": host}
    ) as client:
        for path in paths:
            try:
                response = await client.get(path)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                seen.append(f"{path} {type(error).__name__}")
            else:
                text = "" if response.status_code == 200 else first_lines(response.text)
                seen.append(" ".join([path, str(response.status_code), *text.splitlines()]))
    return "; ".join(seen)


def first_lines(text: str, lines: int = 6) -> str:
    """Return the first lines of a response as text, without HTML tags and repeated lines."""
    plain = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)
    # A page's title is usually its heading, too.
    kept = dict.fromkeys(" ".join(line.split()) for line in plain.splitlines())
    return "\n".join([line[:160] for line in kept if line][:lines])
