"""Request pages and assets of the deployed application through router and web server."""

import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx

from rehearsal.findings import Finding, Severity, count
from rehearsal.project import Project
from rehearsal.router import Page

STAGE = "probe"
# `rel` values of links to a page's own files, as opposed to other pages.
RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "apple-touch-icon"}
COMPRESSED = (".css", ".js", ".svg")
MIN_COMPRESSED_BYTES = 1024  # smaller files are not worth compressing
IMMUTABLE_SECONDS = 30 * 24 * 3600
MAX_REDIRECTS = 5


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


async def probe(
    address: str, pages: Sequence[Page], project: Project, *, with_files: bool
) -> tuple[list[Finding], str]:
    """Check pages, assets, readiness and a missing page.

    Args:
        address: the router's URL.
        pages: the pages to request.
        project: says whether the project names these pages; if not, any response below 500 is fine.
        with_files: whether there is a web server that serves the files.

    Returns:
        The findings, and a summary of what was checked.
    """
    found: list[Finding] = []
    assets = 0
    seen = []
    async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
        for number, page in enumerate(pages):
            if project.pages:
                response = await get(client, page, found)
                if response is not None and response.status_code != 200:
                    found.append(
                        Finding(
                            STAGE,
                            f"{page.path} responds with {response.status_code}",
                            consequence="visitors see an error",
                            fix="fix the page, or correct `pages` in [tool.rehearsal] in"
                            " pyproject.toml",
                            excerpt=first_lines(response.text),
                        )
                    )
            else:
                page, response = await follow(client, page, {p.host for p in pages}, found)
                if response is not None:
                    seen.append(f"{page.path} {response.status_code}")
                    found += judge_answer(page, response)
            if response is not None and response.status_code == 200 and number == 0 and with_files:
                # In pages that the project does not vouch for, a link may have been broken before.
                severity = Severity.ERROR if project.pages else Severity.WARNING
                assets = await check_assets(client, page, response, severity, found)
        if project.ready:
            await check_readiness(client, Page(pages[0].host, project.ready), found)
        if pages:
            await check_missing_page(client, pages[0], project, found)
    if not project.pages:
        found.append(
            Finding(
                STAGE,
                f"only {', '.join(page.path for page in pages)} was requested"
                if pages
                else "no route leads to the application, so no page was requested",
                fix='name the pages to check in pyproject.toml: `pages = ["/", "/about"]` under'
                " [tool.rehearsal]",
                severity=Severity.NOTE,
            )
        )
        return found, ", ".join([*seen, count(assets, "asset")])
    return found, f"{count(len(pages), 'page')}, {count(assets, 'asset')}, a missing page"


async def get(client: httpx.AsyncClient, page: Page, found: list[Finding]) -> httpx.Response | None:
    """Send a GET request; add a finding and return None if there is no HTTP response."""
    headers = {"Accept-Encoding": "br, gzip", "Host": page.host}
    try:
        return await client.get(page.path, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found.append(Finding(STAGE, f"{page.path} does not respond: {type(error).__name__}"))
        return None


async def follow(
    client: httpx.AsyncClient, page: Page, hosts: Collection[str], found: list[Finding]
) -> tuple[Page, httpx.Response | None]:
    """Request a page, and follow its redirects within the site.

    Returns:
        The last page, and its response; None if it did not respond.
    """
    begin = page
    for _ in range(MAX_REDIRECTS):
        response = await get(client, page, found)
        if response is None or not response.has_redirect_location:
            return page, response
        try:
            url = urlsplit(urljoin(f"https://{page.host}{page.path}", response.headers["location"]))
        except ValueError:  # an invalid URL, which browsers do not follow
            return page, response
        if url.hostname is None or url.hostname not in hosts:
            return page, response
        page = Page(url.hostname, f"{url.path or '/'}{f'?{url.query}' if url.query else ''}")
    found.append(
        Finding(
            STAGE,
            f"{begin.path} redirects more than {MAX_REDIRECTS} times, most recently to {page.path}",
            consequence="browsers give up with an error",
            fix="end the loop; the platform's router sends X-Forwarded-Proto: https",
        )
    )
    return page, None


def judge_answer(page: Page, response: httpx.Response) -> list[Finding]:
    """Check the response of a page that the project has not named."""
    status = response.status_code
    if status >= 500:
        return [
            Finding(
                STAGE,
                f"{page.path} responds with {status}",
                consequence="visitors see an error",
                fix="fix the page",
                excerpt=first_lines(response.text),
            )
        ]
    if status == 400:
        return [
            Finding(
                STAGE,
                f"{page.path} responds with 400 to requests for {page.host}",
                consequence="an application that accepts only its own domain rejects requests for"
                " the host that the platform generates",
                fix="accept the hosts in PLATFORM_ROUTES, or rehearse with --domain and the"
                " project's own domain",
                severity=Severity.WARNING,
                excerpt=first_lines(response.text),
            )
        ]
    return []


async def check_readiness(client: httpx.AsyncClient, page: Page, found: list[Finding]) -> None:
    """Check that the readiness URL responds with 200."""
    response = await get(client, page, found)
    if response is not None and response.status_code != 200:
        found.append(
            Finding(
                STAGE,
                f"{page.path} responds with {response.status_code} after the deploy",
                consequence="the application reports that it cannot serve requests",
                excerpt=first_lines(response.text),
            )
        )


async def check_missing_page(
    client: httpx.AsyncClient, page: Page, project: Project, found: list[Finding]
) -> None:
    """Check that a page that does not exist is not a server error, and not found either."""
    path = f"{page.path.rpartition('/')[0]}/rehearsal-{secrets.token_hex(4)}"
    response = await get(client, Page(page.host, path), found)
    # A redirect to a login, for example, is fine.
    if response is not None and (response.status_code == 200 or response.status_code >= 500):
        found.append(
            Finding(
                STAGE,
                f"a page that does not exist responds with {response.status_code} instead of 404",
                severity=Severity.ERROR
                if response.status_code >= 500 and project.pages
                else Severity.WARNING,
            )
        )


async def check_assets(
    client: httpx.AsyncClient,
    page: Page,
    response: httpx.Response,
    severity: Severity,
    found: list[Finding],
) -> int:
    """Check the assets of a page; return their number. A missing one has the given severity."""
    parser = Assets()
    parser.feed(response.text)
    names = sorted(set(own(parser.names, page)))
    for name in names:
        asset = await get(client, Page(page.host, name), found)
        if asset is None:
            continue
        if asset.status_code != 200:
            found.append(
                Finding(
                    STAGE,
                    f"{page.path} uses {name}, which responds with {asset.status_code}",
                    consequence="visitors see the page without it",
                    fix="create the file in the build hook, and check that no mount hides it",
                    severity=severity if asset.status_code < 500 else Severity.ERROR,
                )
            )
            continue
        found += check_headers(name, asset)
    return len(names)


def own(names: Iterable[str], page: Page) -> Iterable[str]:
    """Yield the paths of the URLs that are on the page's host."""
    for name in names:
        try:
            url = urlsplit(urljoin(f"https://{page.host}{page.path}", name))
        except ValueError:  # an invalid URL, which browsers ignore
            continue
        if url.netloc == page.host:
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


async def describe_responses(address: str, pages: Iterable[Page]) -> str:
    """Return the current responses of some pages, in one line."""
    seen = []
    async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
        for page in pages:
            try:
                response = await client.get(page.path, headers={"Host": page.host})
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                seen.append(f"{page.path} {type(error).__name__}")
            else:
                text = "" if response.status_code == 200 else first_lines(response.text)
                seen.append(" ".join([page.path, str(response.status_code), *text.splitlines()]))
    return "; ".join(seen)


def first_lines(text: str, lines: int = 6) -> str:
    """Return the first lines of a response as text, without HTML tags and repeated lines."""
    plain = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)
    # A page's title is usually its heading, too.
    kept = dict.fromkeys(" ".join(line.split()) for line in plain.splitlines())
    return "\n".join([line[:160] for line in kept if line][:lines])
