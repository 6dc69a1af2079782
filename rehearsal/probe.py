"""Looks at the deployed application as its visitors do, through router and web server."""

import re
import secrets
from collections.abc import Iterable
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx

from rehearsal.findings import Finding, Severity
from rehearsal.project import Project

STAGE = "probe"
# What links that way is part of the page, not another page.
RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "apple-touch-icon"}
COMPRESSED = (".css", ".js", ".svg")
SMALL = 1024  # bytes that are not worth compressing
IMMUTABLE_SECONDS = 30 * 24 * 3600


class Assets(HTMLParser):
    """Collects the files that a page is made of."""

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
    """Ask for what every visitor asks for.

    Args:
        address: of the router.
        project: says which pages there are.
        with_files: whether a web server stands before the application, which serves the files.

    Returns:
        The findings, and a line about what was looked at.
    """
    found: list[Finding] = []
    assets = 0
    async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
        for number, page in enumerate(project.pages):
            answer = await ask(client, page, found)
            if answer is None:
                continue
            if answer.status_code != 200:
                found.append(
                    Finding(
                        STAGE,
                        f"{page} is answered with {answer.status_code}",
                        consequence="visitors see an error",
                        excerpt=first_lines(answer.text),
                    )
                )
            elif number == 0 and with_files:
                assets = await check_assets(client, page, answer, found)
        if project.ready:
            await check_readiness(client, project.ready, found)
        await check_missing_page(client, found)
    return found, f"{len(project.pages)} pages, {assets} assets, a missing page"


async def ask(client: httpx.AsyncClient, path: str, found: list[Finding]) -> httpx.Response | None:
    """Send a GET; what is not HTTP becomes a finding."""
    try:
        return await client.get(path, headers={"Accept-Encoding": "br, gzip"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found.append(Finding(STAGE, f"{path} is not answered: {type(error).__name__}"))
        return None


async def check_readiness(client: httpx.AsyncClient, path: str, found: list[Finding]) -> None:
    answer = await ask(client, path, found)
    if answer is not None and answer.status_code != 200:
        found.append(
            Finding(
                STAGE,
                f"{path} says after the deploy: {answer.status_code}",
                consequence="the application itself says that it cannot serve",
                excerpt=first_lines(answer.text),
            )
        )


async def check_missing_page(client: httpx.AsyncClient, found: list[Finding]) -> None:
    """A page that is not there must be said to be not there."""
    path = f"/rehearsal-{secrets.token_hex(4)}"
    answer = await ask(client, path, found)
    if answer is not None and answer.status_code != 404:
        found.append(
            Finding(
                STAGE,
                f"a page that does not exist is answered with {answer.status_code}, not 404",
                severity=Severity.ERROR if answer.status_code >= 500 else Severity.WARNING,
            )
        )


async def check_assets(
    client: httpx.AsyncClient, page: str, answer: httpx.Response, found: list[Finding]
) -> int:
    """Fetch what the page is made of; return how many files that is."""
    parser = Assets()
    parser.feed(answer.text)
    names = sorted(set(own(parser.names, str(client.base_url), page)))
    for name in names:
        asset = await ask(client, name, found)
        if asset is None:
            continue
        if asset.status_code != 200:
            found.append(
                Finding(
                    STAGE,
                    f"{page} names {name}, which is answered with {asset.status_code}",
                    consequence="the page is shown without it",
                    fix="build it in the build hook, and see that no mount hides it",
                )
            )
            continue
        found += check_headers(name, asset)
    return len(names)


def own(names: Iterable[str], address: str, page: str) -> Iterable[str]:
    """Yield the paths of those that this site serves itself."""
    for name in names:
        try:
            url = urlsplit(urljoin(urljoin(address, page), name))
        except ValueError:  # no browser would ask for it
            continue
        if url.netloc == urlsplit(address).netloc:
            yield f"{url.path}?{url.query}" if url.query else url.path


def check_headers(name: str, asset: httpx.Response) -> list[Finding]:
    """Judge how a file is compressed and kept."""
    found = []
    size = len(asset.content)
    if name.endswith(COMPRESSED) and size > SMALL and "content-encoding" not in asset.headers:
        found.append(
            Finding(
                STAGE,
                f"{name} is sent uncompressed ({size} bytes)",
                fix="write a .gz and a .br beside it when it is built",
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
                f"{name} has a digest in its name and may be kept for"
                f" {kept[1] if kept else 'no'} seconds only",
                consequence="browsers ask for it again and again",
                fix="give the location a rule with `expires: 1y` or a Cache-Control header",
                severity=Severity.WARNING,
            )
        )
    return found


async def describe_responses(address: str, paths: Iterable[str], *, host: str) -> str:
    """Return what visitors of some pages see just now, in one line."""
    seen = []
    async with httpx.AsyncClient(
        base_url=address, timeout=30, trust_env=False, headers={"Host": host}
    ) as client:
        for path in paths:
            try:
                answer = await client.get(path)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                seen.append(f"{path} {type(error).__name__}")
            else:
                words = "" if answer.status_code == 200 else first_lines(answer.text)
                seen.append(" ".join([path, str(answer.status_code), *words.splitlines()]))
    return "; ".join(seen)


def first_lines(text: str, lines: int = 6) -> str:
    """Return the beginning of an answer, as words."""
    words = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)
    kept = [" ".join(line.split()) for line in words.splitlines()]
    return "\n".join([line[:160] for line in kept if line][:lines])
