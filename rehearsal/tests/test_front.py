"""The web server and the router in front of the application, as real nginx processes."""

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from rehearsal import router, web_server
from rehearsal.configuration import Application, Route
from rehearsal.front import nginx as nginx_program
from rehearsal.gate import Gate

SECONDS = 20.0  # a timeout, far longer than anything takes on an idle machine
DOMAIN = "rehearsal.example"

pytestmark = pytest.mark.requires("nginx")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Backend:
    """An application that records its requests, and responds as their X-Response header asks."""

    def __init__(self) -> None:
        self.received = asyncio.Event()
        self.go = asyncio.Event()
        self.sent = asyncio.Event()
        self.gone = asyncio.Event()
        self.requests: list[dict[str, Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # canceled at the end of the server
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        method, target, version = line.split(" ")
        headers: dict[str, str] = {}
        for each in fields:
            name, _, value = each.partition(":")
            assert name.lower() not in headers, f"duplicate header {name}"
            headers[name.lower()] = value.strip()
        request: dict[str, Any] = {
            "method": method,
            "path": target,
            "version": version,
            "headers": headers,
        }
        if headers.get("upgrade") == "websocket":
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\n\r\n"
            )
            while data := await reader.read(1000):
                writer.write(data.upper())
            return
        self.received.set()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
        request["body"] = len(body)
        request["number"] = len(self.requests)
        self.requests.append(request)
        wanted = json.loads(headers.get("x-response", "{}"))
        text = json.dumps(request).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in wanted.get("headers", []))
        start = f"HTTP/1.1 {wanted.get('status', 200)} Status\r\n{extra}"
        kind = wanted.get("kind", "")
        if kind == "large":
            size = 12 * 1024 * 1024
            writer.write(f"{start}Content-Length: {size}\r\n\r\n".encode() + bytes(size))
            await writer.drain()
            writer.write_eof()
            self.sent.set()
        elif kind in {"chunked", "counted", "until the end"}:
            more = {
                "chunked": "Transfer-Encoding: chunked\r\n",
                "counted": "Content-Length: 8\r\n",
                "until the end": "Connection: close\r\n",
            }[kind]
            writer.write(f"{start}{more}\r\n".encode())
            for word in (b"one\n", b"two\n"):
                writer.write(b"4\r\n%b\r\n" % word if kind == "chunked" else word)
                if word == b"one\n":
                    left = asyncio.create_task(reader.read())
                    go = asyncio.create_task(self.go.wait())
                    await asyncio.wait({left, go}, return_when=asyncio.FIRST_COMPLETED)
                    if left.done():
                        self.gone.set()
                        go.cancel()
                        return
                    left.cancel()
            if kind == "chunked":
                writer.write(b"0\r\n\r\n")
        else:
            writer.write(f"{start}Content-Length: {len(text)}\r\n\r\n".encode())
            if method != "HEAD":
                writer.write(text)


@asynccontextmanager
async def application(path: str | None = None) -> AsyncIterator[tuple[Backend, str]]:
    """Run a backend; yield it and its address for `web_server.configuration`."""
    backend = Backend()
    if path:
        server = await asyncio.start_unix_server(backend, path)
        address = f"unix:{path}"
    else:
        server = await asyncio.start_server(backend, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield backend, address
    finally:
        server.close()
        await backend.stop()


def write(scratch: Path, text: str) -> Path:
    scratch.mkdir(exist_ok=True)
    conf = scratch / "nginx.conf"
    conf.write_text(text)
    return conf


@asynccontextmanager
async def nginx(text: str, scratch: Path, port: int, **options: Any) -> AsyncIterator[list[str]]:
    """Run nginx; yield a list that contains its error log after its end."""
    program = nginx_program()
    assert program is not None
    conf = write(scratch, text)
    process = await asyncio.create_subprocess_exec(
        *(program, "-e", "stderr", "-c", str(conf), "-p", str(scratch)),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        **options,
    )
    lines: list[str] = []
    output_task = asyncio.create_task(process.communicate())
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                assert process.returncode is None, (await output_task)[1].decode()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        yield lines
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        _, output = await output_task
        lines += output.decode().splitlines()
    assert await process.wait() == 0, lines
    assert not [line for line in lines if "[emerg]" in line or "[alert]" in line], lines


def client(port: int, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=SECONDS, **options
    )


def response_header(kind: str = "", *headers: tuple[str, str], status: int = 200) -> dict[str, str]:
    """Return the header that tells the backend how to respond."""
    return {"X-Response": json.dumps({"kind": kind, "headers": headers, "status": status})}


def split(line: str) -> tuple[str, str, str]:
    return line.partition(": ")


async def raw(port: int, request: str) -> bytes:
    """Send raw bytes, which no HTTP client would send; return the whole response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode("latin-1"))
    async with asyncio.timeout(SECONDS):
        response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    # Not in pytest's directory: other users cannot enter it, and it is too long for a Unix socket.
    directory = Path(tempfile.mkdtemp(prefix="front-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def need_brotli() -> None:
    """Skip a test without nginx's Brotli module; in CI, fail it."""
    if web_server.brotli_module() is None:
        message = "nginx has no Brotli module (Debian package: libnginx-mod-http-brotli-static)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


# --- the web server ---------------------------------------------------------------------------

HARD = 'a "quoted" \\ back\\new $uri ${host} $1 {brace}; # \\'  # must be escaped for nginx

LOCATIONS: dict[str, Any] = {
    "/": {"passthru": True},
    "/static": {
        "root": "app/static",
        "expires": "5m",
        "headers": {"X-Location": "static", "X-Hard": HARD},
        "rules": {
            r"-[A-Z0-9]{8}\.[a-z0-9]+$": {
                "expires": "1y",
                "headers": {"Cache-Control": "public, immutable", "X-Rule": "digest"},
            },
            r"\.md$": {"headers": {"content-type": "text/markdown; charset=UTF-8"}},
            r"\.txt$": {"expires": 60},
            r"first.*\.css$": {"headers": {"X-Rule": "first"}},
            r"second\.css$": {"headers": {"X-Rule": "second"}},
            r"\.none$": {"headers": {}},
            r"/\.": {"allow": False},
            "/secret": {"allow": False, "passthru": True},
            "/ask": {"passthru": True},
        },
    },
    "/static/deep": {"root": "app/deeper", "headers": {"Cache-Control": "no-store"}},
    "/files/": {"root": "app/static", "passthru": True, "expires": "0"},
    "/site": {"root": "site", "index": ["start.html", "index.html"]},
    "/open": {"root": "site", "index": ["start.html", "index.html"], "passthru": True},
    "/strict": {
        "root": "site",
        "allow": False,
        "index": ["index.html"],
        "rules": {r"\.html$": {"allow": True}},
    },
    "/single": {"root": "site", "passthru": "/single/index.html"},
    "/script": {"root": "site", "passthru": "/script/main.py?how=so"},
    "/shop": {
        "root": "site",
        "passthru": True,
        "rules": {
            "^/shop/(?<kind>[^/]+)/(?<thing>[^/]+)/$": {
                "passthru": "/app?kind=$kind&thing=${thing}&cost=$9"
            },
            r"^/shop/img/(?<name>.*)\.(?<type>.*)$": {"passthru": "/static/$type/$name.$type"},
        },
    },
    "/denied": {"allow": False},
    "/nothing": {},
    "/origin": {
        "root": "app/static",
        "headers": {"Access-Control-Allow-Origin": "*"},
        "rules": {r"\.css$": {"headers": {"Access-Control-Allow-Origin": "https://one.example"}}},
    },
    "/small": {"passthru": True, "request_buffering": {"max_request_size": "1K"}},
    "/unbuffered": {"passthru": True, "request_buffering": {"enabled": False}},
    '/odd "name" $x': {"root": "app/static", "headers": {"X-Odd": "yes"}},
}

FILES = {
    "app/static/main.css": "body{}",
    "app/static/app.js": "1",
    "app/static/app-ABCDEFG1.js": "digest",
    "app/static/app-abcdefg1.js": "no digest",
    "app/static/.hidden": "hidden",
    "app/static/.hidden-ABCDEFG1.js": "hidden",
    "app/static/secret": "secret",
    "app/static/notes.md": "# notes",
    "app/static/notes.txt": "notes",
    "app/static/bare.none": "bare",
    "app/static/first-second.css": "first",
    "app/static/second.css": "second",
    "app/static/with space ü.css": "space",
    "app/static/png/pic.png": "picture",
    "app/static/sub/inner.css": "inner",
    "app/deeper/x.css": "deeper",
    "app/staticfoo": "must not be served",
    "app/secret.py": "source",
    "site/index.html": "site index",
    "site/docs/index.html": "docs index",
    "site/both/index.html": "no",
    "site/both/start.html": "start",
    "site/empty/other.html": "other",
    "static/main.css": "the wrong directory",
    **{
        f"app/static/type.{extension}": extension
        for extension in ("svg", "woff2", "json", "webmanifest", "webp", "avif", "mjs", "wasm")
    },
}


def build(directory: Path) -> None:
    for name, text in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    static = directory / "app/static"
    (static / "big.css").write_text("a{}" * 1000)
    (static / "big.css.gz").write_bytes(gzip.compress(b"gz" * 100, mtime=0))
    (static / "big.css.br").write_bytes(b"not real Brotli")
    (static / "only.css").write_text("plain")
    (static / "only.css.gz").write_bytes(gzip.compress(b"only gz", mtime=0))


@dataclass
class Front:
    port: int
    backend: Backend
    lines: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
async def front(scratch: Path) -> AsyncIterator[Front]:
    """A web server with many locations, in front of an application."""
    directory = scratch / "tree"
    build(directory)
    port = free_port()
    async with application() as (backend, upstream):
        text = web_server.configuration(
            Application.model_validate({"web": {"locations": LOCATIONS}}),
            directory=str(directory),
            port=port,
            upstream=upstream,
            scratch=str(scratch / "front"),
        )
        async with nginx(text, scratch / "front", port):
            yield Front(port, backend)


APP = "the application"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 200, APP),
        ("/anything/else?x=1", 200, APP),
        ("/static/main.css", 200, "body{}"),
        ("/static/main.css?v=1", 200, "body{}"),
        ("/static/with%20space%20%C3%BC.css", 200, "space"),
        ("/static/sub/inner.css", 200, "inner"),
        ("/static/missing.css", 404, ""),
        ("/static/sub", 404, ""),
        ("/static/sub/", 404, ""),
        ("/static/", 404, ""),
        ("/static", 404, ""),
        ("/staticfoo", 200, APP),
        ("/static/%2e%2e/secret.py", 200, APP),  # normalized to /secret.py
        ("/static/..%2fsecret.py", 200, APP),
        ("/static/deep/x.css", 200, "deeper"),
        ("/static/deeper/x.css", 404, ""),
        ("/static/.hidden", 403, ""),
        ("/static/.hidden-ABCDEFG1.js", 200, "hidden"),  # the first rule that matches
        ("/static/secret", 200, APP),
        ("/static/secret/missing", 200, APP),
        ("/static/ask/missing.css", 200, APP),
        ("/files/main.css", 200, "body{}"),
        ("/files/missing.css", 200, APP),
        ("/files/sub", 200, APP),
        ("/files/sub/", 200, APP),
        ("/files/", 200, APP),
        ("/files", 200, APP),
        ("/site/", 200, "site index"),
        ("/site", 301, "/site/"),
        ("/site?a=1", 301, "/site/?a=1"),
        ("/site/docs", 301, "/site/docs/"),
        ("/site/docs/", 200, "docs index"),
        ("/site/both/", 200, "start"),
        ("/site/empty/", 403, ""),
        ("/site/missing/", 404, ""),
        ("/open/", 200, "site index"),
        ("/open/docs/", 200, "docs index"),
        ("/open/empty/", 200, APP),
        ("/open/missing/", 200, APP),
        ("/strict/", 200, "site index"),
        ("/strict/docs/index.html", 200, "docs index"),
        ("/strict/empty/", 403, ""),
        ("/strict/docs/missing.css", 403, ""),
        ("/single/docs/index.html", 200, "docs index"),
        ("/single/some/page", 200, "site index"),
        ("/denied", 403, ""),
        ("/denied/x", 403, ""),
        ("/nothing/x", 404, ""),
        ("/origin/main.css", 200, "body{}"),
        ("/odd%20%22name%22%20$x/main.css", 200, "body{}"),
        ("/shop/img/pic.png", 200, "picture"),
    ],
)
async def test_response_by_path(front: Front, path: str, status: int, text: str) -> None:
    before = len(front.backend.requests)
    async with client(front.port) as http:
        response = await http.get(path)
    assert response.status_code == status
    received = front.backend.requests[before:]
    if text is APP:
        assert [request["path"] for request in received] == [path]
    else:
        assert received == []
        if status == 200:
            assert response.text == text
        if status == 301:
            assert response.headers["Location"] == text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a%2Fb//c%20d?x=%2f&y", "/a%2Fb//c%20d?x=%2f&y"),
        ("/files/a%2Fb%C3%BC?x=1", "/files/a%2Fb%C3%BC?x=1"),
        ("/script/some/page?x=1", "/script/main.py?how=so&x=1"),
        ("/script/", "/script/main.py?how=so"),
        ("/shop/shoes/great-shoe/?p=1", "/app?kind=shoes&thing=great-shoe&cost=$9&p=1"),
        ("/shop/img/none.png", None),
    ],
)
async def test_request_path_of_the_application(
    front: Front, path: str, expected: str | None
) -> None:
    before = len(front.backend.requests)
    await raw(front.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    found = [request["path"] for request in front.backend.requests[before:]]
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/static/main.css", {"Cache-Control": "max-age=300", "X-Location": "static"}),
        ("/static/main.css", {"X-Hard": HARD, "Content-Type": "text/css", "X-Rule": None}),
        (
            "/static/app-ABCDEFG1.js",
            {
                "Cache-Control": "public, immutable",
                "X-Rule": "digest",
                "X-Location": None,
                "Expires": None,
            },
        ),
        ("/static/app-abcdefg1.js", {"X-Rule": None, "X-Location": "static"}),
        ("/static/notes.md", {"Content-Type": "text/markdown; charset=UTF-8"}),
        ("/static/notes.md", {"X-Location": None, "Cache-Control": "max-age=300"}),
        ("/static/notes.txt", {"Cache-Control": "max-age=60", "X-Location": "static"}),
        ("/static/first-second.css", {"X-Rule": "first"}),
        ("/static/second.css", {"X-Rule": "second"}),
        ("/static/bare.none", {"X-Location": None, "Content-Type": "application/octet-stream"}),
        ("/static/deep/x.css", {"Cache-Control": "no-store", "Expires": None, "X-Hard": None}),
        ("/files/main.css", {"Cache-Control": "max-age=0"}),
        ("/site/index.html", {"Cache-Control": "no-cache", "Content-Type": "text/html"}),
        ("/origin/app.js", {"Access-Control-Allow-Origin": "*", "Vary": "Origin"}),
        ("/origin/main.css", {"Access-Control-Allow-Origin": "https://one.example", "Vary": None}),
        ("/odd%20%22name%22%20$x/main.css", {"X-Odd": "yes"}),
        ("/static/app.js", {"Content-Type": "text/javascript"}),
        ("/static/type.mjs", {"Content-Type": "text/javascript"}),
        ("/static/type.svg", {"Content-Type": "image/svg+xml"}),
        ("/static/type.woff2", {"Content-Type": "font/woff2"}),
        ("/static/type.json", {"Content-Type": "application/json"}),
        ("/static/type.webmanifest", {"Content-Type": "application/manifest+json"}),
        ("/static/type.webp", {"Content-Type": "image/webp"}),
        ("/static/type.avif", {"Content-Type": "image/avif"}),
        ("/static/type.wasm", {"Content-Type": "application/wasm"}),
        # Responses of the application and errors have none of these headers.
        ("/static/ask/missing.css", {"X-Location": None, "Cache-Control": None, "Expires": None}),
        ("/static/secret", {"X-Location": None, "Cache-Control": None, "X-Hard": None}),
        ("/files/missing", {"Cache-Control": None}),
        ("/static/missing", {"X-Location": None, "Cache-Control": None}),
        ("/", {"Cache-Control": None, "Expires": None}),
    ],
)
async def test_headers(front: Front, path: str, expected: Mapping[str, str | None]) -> None:
    async with client(front.port) as http:
        response = await http.get(path, headers={"Accept-Encoding": ""})
    assert {name: response.headers.get(name) for name in expected} == expected
    assert len(response.headers.get_list("Content-Type")) <= 1


async def test_wildcard_origin_becomes_the_origin_of_the_request(front: Front) -> None:
    async with client(front.port) as http:
        response = await http.get("/origin/app.js", headers={"Origin": "https://two.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "https://two.example"


async def test_application_headers_reach_the_client(front: Front) -> None:
    headers = response_header(
        "", ("X-Own", "yes"), ("Cache-Control", "private"), ("Set-Cookie", "a=1"), status=404
    )
    async with client(front.port) as http:
        response = await http.get("/files/missing", headers=headers)
    assert response.status_code == 404
    assert response.headers["X-Own"] == "yes"
    assert response.headers["Cache-Control"] == "private"
    assert response.headers["Set-Cookie"] == "a=1"


@pytest.mark.parametrize("path", ["/form", "/files/missing", "/open/docs/", "/single/none.py"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
async def test_methods_and_bodies_are_forwarded(front: Front, path: str, method: str) -> None:
    content = b"" if method == "HEAD" else b"x" * 100_000
    before = len(front.backend.requests)
    async with client(front.port) as http:
        response = await http.request(method, path, content=content)
    if method == "HEAD" and path in {"/open/docs/", "/single/none.py"}:
        assert front.backend.requests[before:] == []  # there is a file
        return
    assert response.status_code == 200
    assert front.backend.requests[-1]["method"] == method
    assert front.backend.requests[-1]["body"] == len(content)


async def test_headers_that_reach_the_application(front: Front) -> None:
    headers = {
        "Host": "www.example.com:99",
        "X-Forwarded-For": "192.0.2.1, 192.0.2.2",
        "X-Forwarded-Host": "evil.example",
        "X-Client-IP": "192.0.2.1",
        "X-Anything": "yes",
        "Forwarded": "for=192.0.2.3",
        "Upgrade": "h2c",
        "Connection": "Upgrade, HTTP2-Settings",
        "Cookie": "a=1; b=2",
    }
    async with client(front.port) as http:
        await http.get("/headers", headers=headers)
    request = front.backend.requests[-1]
    assert request["version"] == "HTTP/1.1"
    expected = {name.lower(): value for name, value in headers.items()}
    del expected["upgrade"]
    expected["connection"] = "close"
    assert {name: request["headers"].get(name) for name in expected} == expected
    assert "upgrade" not in request["headers"]


@pytest.mark.parametrize(
    ("accept", "encoding", "path"),
    [
        ("gzip", "gzip", "big.css"),
        ("gzip, deflate, br", "br", "big.css"),
        ("br", "br", "big.css"),
        ("", None, "big.css"),
        ("gzip, br", "gzip", "only.css"),
        ("br", None, "only.css"),
        ("", None, "only.css"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_precompressed_files(
    front: Front, accept: str, encoding: str | None, path: str, version: str
) -> None:
    if "br" in accept:
        need_brotli()
    response = await raw(
        front.port,
        f"GET /static/{path} HTTP/{version}\r\nHost: x\r\nVia: 1.1 x\r\nConnection: close\r\n"
        f"Accept-Encoding: {accept}\r\n\r\n",
    )
    head, _, body = response.partition(b"\r\n\r\n")
    headers = httpx.Headers(
        [(n, v.strip()) for n, _, v in (x.partition(b":") for x in head.split(b"\r\n")[1:])]
    )
    assert headers.get("Content-Encoding") == encoding
    assert headers["Vary"] == "Accept-Encoding"
    assert headers["Content-Type"] == "text/css"
    assert headers["X-Location"] == "static"
    if encoding == "gzip":
        assert gzip.decompress(body) in {b"gz" * 100, b"only gz"}
    elif encoding == "br":
        assert body == b"not real Brotli"
    else:
        assert body in {b"a{}" * 1000, b"plain"}


async def test_uncompressed_files_have_no_vary_header(front: Front) -> None:
    async with client(front.port) as http:
        response = await http.get("/static/main.css")
    assert "Vary" not in response.headers
    assert "Content-Encoding" not in response.headers


async def test_conditional_and_range_requests(front: Front) -> None:
    async with client(front.port) as http:
        first = await http.get("/static/main.css")
        again = await http.get("/static/main.css", headers={"If-None-Match": first.headers["ETag"]})
        part = await http.get("/static/main.css", headers={"Range": "bytes=1-2"})
    assert (again.status_code, again.headers["Cache-Control"]) == (304, "max-age=300")
    assert (part.status_code, part.text) == (206, "od")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [("/small", 1024, 200), ("/small/x", 1025, 413), ("/large", 3_000_000, 200)],
)
async def test_maximum_request_size(
    front: Front, path: str, size: int, status: int, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * size

    async with client(front.port) as http:
        response = await http.post(path, content=pieces() if chunked else b"x" * size)
    assert response.status_code == status
    if status == 200:
        assert front.backend.requests[-1]["body"] == size


@pytest.mark.parametrize(("path", "buffered"), [("/buffered", True), ("/unbuffered/x", False)])
async def test_request_buffering(front: Front, path: str, buffered: bool) -> None:
    """With buffering, the application receives the complete body, with its Content-Length."""
    front.backend.received.clear()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        if not buffered:
            await front.backend.received.wait()
        yield b"two"

    async with client(front.port) as http:
        await http.post(path, content=pieces())
    headers = front.backend.requests[-1]["headers"]
    assert front.backend.requests[-1]["body"] == 6
    assert headers.get("content-length") == ("6" if buffered else None)
    assert headers.get("transfer-encoding") == (None if buffered else "chunked")


async def check_stream(port: int, kind: str, backend: Backend, *headers: tuple[str, str]) -> None:
    """Request a stream; check that its first part arrives before the second is sent."""
    backend.go.clear()
    async with (
        client(port) as http,
        http.stream("GET", "/stream", headers=response_header(kind, *headers)) as response,
    ):
        pieces = response.aiter_raw()
        async with asyncio.timeout(SECONDS):
            assert await anext(pieces) == b"one\n"
            backend.go.set()
            assert await anext(pieces) == b"two\n"


EVENTS = ("Content-Type", "text/event-stream")
UNBUFFERED = ("X-Accel-Buffering", "no")
# nginx forwards chunked responses immediately, even with buffering, and buffers other responses
# unless X-Accel-Buffering forbids it.
STREAMS = pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("chunked", [EVENTS]),
        ("chunked", [EVENTS, ("Cache-Control", "no-store")]),
        ("chunked", [EVENTS, UNBUFFERED]),
        ("chunked", [("Content-Type", "text/plain")]),
        ("until the end", [EVENTS, UNBUFFERED]),
        ("counted", [("Content-Type", "text/plain"), UNBUFFERED]),
    ],
)


@STREAMS
async def test_stream_is_not_buffered(
    front: Front, kind: str, headers: list[tuple[str, str]]
) -> None:
    await check_stream(front.port, kind, front.backend, *headers)


async def test_slow_client_does_not_block_the_application(front: Front) -> None:
    front.backend.sent.clear()
    async with (
        client(front.port) as http,
        http.stream("GET", "/slow", headers=response_header("large")) as response,
    ):
        async with asyncio.timeout(SECONDS):
            await front.backend.sent.wait()
        assert response.status_code == 200


async def test_application_notices_a_closed_connection(front: Front) -> None:
    front.backend.gone.clear()
    front.backend.go.clear()
    async with (
        client(front.port) as http,
        http.stream("GET", "/stream", headers=response_header("chunked")) as response,
    ):
        assert await anext(response.aiter_raw()) == b"one\n"
    async with asyncio.timeout(SECONDS):
        await front.backend.gone.wait()


async def websocket(port: int, host: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /socket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
        "Connection: keep-alive, Upgrade\r\n\r\n".encode()
    )
    async with asyncio.timeout(SECONDS):
        assert b" 101 " in await reader.readline()
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"upgrade: websocket" in head.lower()
        for word in (b"hello", b"again"):
            writer.write(word)
            assert await reader.readexactly(5) == word.upper()
        writer.write_eof()
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_websocket_is_forwarded(front: Front) -> None:
    await websocket(front.port, "x")


async def test_application_on_a_unix_socket(scratch: Path) -> None:
    port = free_port()
    async with application(str(scratch / "app.sock")) as (backend, upstream):
        text = web_server.configuration(
            Application(),  # without locations, all requests go to the application
            directory="/app",
            port=port,
            upstream=upstream,
            scratch=str(scratch / "unix"),
        )
        async with nginx(text, scratch / "unix", port), client(port) as http:
            response = await http.get("/x", headers={"Host": "a.example"})
        assert response.json()["headers"]["host"] == "a.example"
    assert len(backend.requests) == 1


async def test_missing_application_is_a_502(scratch: Path) -> None:
    port = free_port()
    text = web_server.configuration(
        Application(),
        directory="/app",
        port=port,
        upstream=f"127.0.0.1:{free_port()}",
        scratch=str(scratch / "none"),
    )
    async with nginx(text, scratch / "none", port) as lines, client(port) as http:
        response = await http.get("/")
    assert response.status_code == 502
    assert "nginx" in response.text
    assert any("Connection refused" in line for line in lines)


@pytest.mark.parametrize("super_user", [True, False])
async def test_nginx_writes_to_its_scratch_directory_only(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, super_user: bool
) -> None:
    """Without root, nginx would log an error when writing to a system directory."""
    if super_user and os.geteuid() != 0:
        pytest.skip("needs to be root")
    directory = scratch / f"user-{super_user}"
    directory.mkdir()
    options = {}
    if not super_user and os.geteuid() == 0:
        nobody = 65534
        os.chown(directory, nobody, nobody)
        options = {"user": nobody, "group": nobody, "extra_groups": []}
        monkeypatch.setattr(os, "geteuid", lambda: nobody)
    tree = scratch / "tree"
    build(tree)
    port, front_port = free_port(), free_port()
    async with application() as (_, upstream):
        text = web_server.configuration(
            Application.model_validate({"web": {"locations": LOCATIONS}}),
            directory=str(tree),
            port=port,
            upstream=upstream,
            scratch=str(directory),
        )
        gate = int(upstream.rpartition(":")[2])
        front_text = router.configuration(
            {"https://{default}/": Route(upstream="app:http")},
            application="app",
            domain=DOMAIN,
            port=front_port,
            held=gate,
            direct=gate,
            scratch=str(directory),
        )
        for config, address in ((text, port), (front_text, front_port)):
            async with (
                nginx(config, directory, address, **options) as lines,
                client(address) as http,
            ):
                response = await http.post("/x", content=b"x" * 2_000_000)
                assert response.json()["body"] == 2_000_000
                response = await http.get(
                    "/y", headers=response_header("", ("Cache-Control", "max-age=9"))
                )
                assert response.status_code == 200
                if address == port:
                    assert (await http.get("/static/main.css")).text == "body{}"
            assert lines == []


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        (-1, -1),
        ("-1", -1),
        (0, 0),
        (300, 300),
        ("1500ms", 1),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1w", 604800),
        ("1M", 2592000),
        ("1y", 31536000),
        ("soon", None),
        ("5 m", None),
        ("1h30m", None),
        ("5min", None),
        ("", None),
    ],
)
def test_durations(expires: int | str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="invalid duration"):
            web_server.seconds(expires)
    else:
        assert web_server.seconds(expires) == expected


@pytest.mark.parametrize("size", ["250m", "1K", "2G", "1024", "much", "1T", "1m; x"])
def test_sizes(size: str) -> None:
    if size[0].isdigit() and "T" not in size and ";" not in size:
        assert web_server.size(size) == size
    else:
        with pytest.raises(ValueError, match="invalid size"):
            web_server.size(size)


# --- the router -------------------------------------------------------------------------------

ROUTES: dict[str, Any] = {
    "https://www.{default}/": {"type": "redirect", "to": "https://{default}/"},
    "https://other.{default}/": {"upstream": "other:http"},
    "https://{default}/": {
        "upstream": "app:http",
        "redirects": {
            "expires": "1d",
            "paths": {
                "/from": {"to": "https://{default}/to"},
                "/from/longer": {"to": "https://far.example/longer/", "code": 308},
                "/exact": {"to": "/relative", "prefix": False, "code": 301},
                "/cut": {"to": "https://far.example/cut", "append_suffix": False, "expires": 0},
                "^/foo/(.*)/bar": {"to": "https://far.example/$1", "regexp": True, "code": 307},
                "^/args$": {"to": "/new$is_args$args&a=$arg_a&u=$uri&c=$2$cost", "regexp": True},
            },
        },
    },
    "http://{default}/": {"type": "redirect", "to": "https://{default}/"},
    "https://old.{default}/part/": {"type": "redirect", "to": "https://{default}/whole"},
    "https://uncached.{all}/": {"upstream": "app:http", "cache": {"enabled": False}},
    "https://session.{default}/": {
        "upstream": "app:http",
        "cache": {"enabled": True, "cookies": ["sid", "a-b"], "headers": ["X-Locale"]},
    },
    "https://pattern.{default}/": {
        "upstream": "app:http",
        "cache": {"enabled": True, "cookies": ["/^SS?ESS/"], "headers": []},
    },
    "https://ignoring.{default}/": {
        "upstream": "app:http",
        "cache": {"enabled": True, "cookies": [], "default_ttl": 60},
    },
    "https://*.many.{default}/": {"upstream": "app:http"},
    "https://paths.{default}/": {"upstream": "app:http"},
    "https://paths.{default}/api": {
        "upstream": "app:http",
        "cache": {"enabled": False},
        "redirects": {"paths": {"/api/old": {"to": "/api/new"}, "/out": {"to": "/never"}}},
    },
}


@dataclass
class Edge:
    port: int
    held: Backend
    direct: Backend
    scratch: Path


@pytest.fixture(scope="module")
async def edge(scratch: Path) -> AsyncIterator[Edge]:
    """A router in front of two applications, which replace the gate's two ports."""
    port = free_port()
    async with application() as (held, first), application() as (direct, second):
        text = router.configuration(
            {key: Route.model_validate(route) for key, route in ROUTES.items()},
            application="app",
            domain=DOMAIN,
            port=port,
            held=int(first.rpartition(":")[2]),
            direct=int(second.rpartition(":")[2]),
            scratch=str(scratch / "edge"),
        )
        async with nginx(text, scratch / "edge", port):
            yield Edge(port, held, direct, scratch / "edge")


@pytest.mark.parametrize(
    ("host", "forwarded", "route"),
    [
        (DOMAIN, DOMAIN, "https://{default}/"),
        (DOMAIN.upper(), DOMAIN, "https://{default}/"),
        (f"{DOMAIN}:8080", DOMAIN, "https://{default}/"),
        (None, DOMAIN, "https://{default}/"),  # 127.0.0.1 and the port
        ("evil.example", DOMAIN, "https://{default}/"),
        (f"uncached.{DOMAIN}", f"uncached.{DOMAIN}", "https://uncached.{all}/"),
        (f"x.many.{DOMAIN}", f"x.many.{DOMAIN}", "https://*.many.{default}/"),
    ],
)
async def test_hosts_and_headers(edge: Edge, host: str | None, forwarded: str, route: str) -> None:
    headers = {
        **({"Host": host} if host else {}),
        "X-Forwarded-Proto": "http",
        "X-Client-IP": "192.0.2.1",
        "X-Client-SSL": "off",
        "X-Original-Route": "https://evil.example/",
        "Client-Country": "FR",
        "Client-Abuse-Score": "-1",
        "Client-Cdn": "Fastly",
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=192.0.2.9",
        "Cookie": "a=1",
        "X-Own": "own",
    }
    async with client(edge.port) as http:
        response = await http.get("/who%2F?x=1", headers=headers)
    request = response.json()
    assert request["path"] == "/who%2F?x=1"
    expected = {
        "host": forwarded,
        "x-forwarded-proto": "https",
        "x-client-ip": "127.0.0.1",
        "x-client-ssl": "on",
        "x-original-route": route,
        "client-country": "ZZ",
        "client-asn": "64496",
        "client-abuse-score": "0",
        "client-cdn": None,
        "x-forwarded-for": "192.0.2.7, 127.0.0.1",
        "x-forwarded-host": "evil.example",
        "forwarded": "for=192.0.2.9",
        "cookie": "a=1",
        "x-own": "own",
        "connection": "close",
    }
    assert {name: request["headers"].get(name) for name in expected} == expected


async def test_forwarded_for_is_added(edge: Edge) -> None:
    async with client(edge.port) as http:
        response = await http.post("/")
    assert response.json()["headers"]["x-forwarded-for"] == "127.0.0.1"


def default_host(routes: Mapping[str, Route]) -> str:
    text = router.configuration(
        routes, application="app", domain=DOMAIN, port=1, held=2, direct=3, scratch="/scratch"
    )
    before, _, after = text.partition("default_server;\nserver_name ")
    assert "default_server" not in before + after
    return after.partition(";")[0].strip('"')


def test_primary_route_is_the_default() -> None:
    routes = {
        "https://www.{default}/": Route(type="redirect", to="https://{default}/"),
        "https://b.{default}/": Route(upstream="other:http"),
        "https://{default}/": Route(upstream="app:http"),
        "https://c.{default}/": Route(upstream="app:http"),
    }
    assert default_host(routes) == DOMAIN
    routes["https://c.{default}/"] = Route(upstream="app:http", primary=True)
    assert default_host(routes) == f"c.{DOMAIN}"


@pytest.mark.parametrize(
    ("host", "path", "status", "location"),
    [
        (f"www.{DOMAIN}", "/", 301, f"https://{DOMAIN}/"),
        (f"www.{DOMAIN}", "/a%2Fb%20c/?x=%2f&y=1", 301, f"https://{DOMAIN}/a%2Fb%20c/?x=%2f&y=1"),
        (f"old.{DOMAIN}", "/part/a%20b?x=1", 301, f"https://{DOMAIN}/whole/a%20b?x=1"),
        (f"old.{DOMAIN}", "/part", 301, f"https://{DOMAIN}/whole"),
        (f"old.{DOMAIN}", "/elsewhere", 404, None),
        (f"other.{DOMAIN}", "/", 502, None),
        (DOMAIN, "/from", 302, f"http://{DOMAIN}/to"),
        (DOMAIN, "/from/some/p%20th?x=1", 302, f"http://{DOMAIN}/to/some/p%20th"),
        (DOMAIN, "/from/longer/x", 308, "https://far.example/longer/x"),
        (DOMAIN, "/fromage", 200, None),
        (DOMAIN, "/exact", 301, "/relative"),
        (DOMAIN, "/exact/x", 200, None),
        (DOMAIN, "/exact?x=1", 301, "/relative"),
        (DOMAIN, "/cut/some/path", 302, "https://far.example/cut"),
        (DOMAIN, "/foo/a/b/c/bar", 307, "https://far.example/a/b/c"),
        (DOMAIN, "/foo/a%0d%0aX-Evil:1/bar", 307, "https://far.example/a%0d%0aX-Evil:1"),
        (DOMAIN, "/args?a=b&c", 302, "/new?a=b&c&a=b&u=/args&c=$cost"),
        (f"paths.{DOMAIN}", "/api/old/x", 302, "/api/new/x"),
        (f"paths.{DOMAIN}", "/out", 200, None),
        (f"paths.{DOMAIN}", "/api", 200, None),
        (f"paths.{DOMAIN}", "/apifoo", 200, None),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_redirects(
    edge: Edge, host: str, path: str, status: int, location: str | None, method: str
) -> None:
    response = await raw(
        edge.port, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    head = response.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert int(head[0].split(" ")[1]) == status
    headers = httpx.Headers([(name, value) for name, _, value in map(split, head[1:])])
    assert headers.get("Location") == location
    assert "X-Evil" not in headers


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/from", "max-age=86400"),
        ("/cut", "max-age=0"),
        ("/api/old", None),
    ],
)
async def test_redirects_may_be_cached(edge: Edge, path: str, expected: str | None) -> None:
    host = f"paths.{DOMAIN}" if path.startswith("/api") else DOMAIN
    async with client(edge.port) as http:
        response = await http.get(path, headers={"Host": host})
    assert response.status_code == 302
    assert response.headers.get("Cache-Control") == expected


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "https://paths.{default}/"),
        ("/apis", "https://paths.{default}/"),
        ("/api", "https://paths.{default}/api"),
        ("/api/x", "https://paths.{default}/api"),
    ],
)
async def test_routes_with_paths(edge: Edge, path: str, route: str) -> None:
    async with client(edge.port) as http:
        response = await http.get(path, headers={"Host": f"paths.{DOMAIN}"})
    assert response.json()["headers"]["x-original-route"] == route


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (f"https://{DOMAIN}/login/?next=/x", "http://{address}/login/?next=/x"),
        (f"https://{DOMAIN}", "http://{address}"),
        (f"https://{DOMAIN}?x=1", "http://{address}?x=1"),
        (f"https://{DOMAIN}.evil.example/", None),
        (f"https://www.{DOMAIN}/", None),
        (f"http://{DOMAIN}/", None),
        ("https://far.example/", None),
        ("/relative", None),
    ],
)
@pytest.mark.parametrize("host", [None, f"{DOMAIN}:8123"])
async def test_location_header_stays_on_the_local_host(
    edge: Edge, location: str, expected: str | None, host: str | None
) -> None:
    headers = response_header("", ("Location", location), status=302)
    async with client(edge.port) as http:
        response = await http.post("/", headers=headers | ({"Host": host} if host else {}))
    address = host or f"127.0.0.1:{edge.port}"
    assert response.headers["Location"] == (expected or location).format(address=address)


@pytest.mark.parametrize(
    ("method", "is_held"),
    [
        *((method, True) for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS")),
        *((method, False) for method in ("POST", "PATCH")),
    ],
)
async def test_idempotent_requests_are_held(edge: Edge, method: str, is_held: bool) -> None:
    held, direct = len(edge.held.requests), len(edge.direct.requests)
    async with client(edge.port) as http:
        response = await http.request(method, "/", headers={"Host": f"uncached.{DOMAIN}"})
    assert response.status_code == 200
    assert len(edge.held.requests) - held == (1 if is_held else 0)
    assert len(edge.direct.requests) - direct == (0 if is_held else 1)
    assert (edge.held if is_held else edge.direct).requests[-1]["method"] == method


Visit = tuple[str, dict[str, str]]  # expected X-Platform-Cache, and request headers


@pytest.mark.parametrize(
    ("host", "response_headers", "visits"),
    [
        # Cache-Control of the application.
        ("", {"Cache-Control": "max-age=60"}, [("MISS", {}), ("HIT", {})]),
        ("", {"Cache-Control": "public, s-maxage=60"}, [("MISS", {}), ("HIT", {})]),
        ("", {"Cache-Control": "max-age=0, s-maxage=60"}, [("MISS", {}), ("HIT", {})]),
        ("", {"Cache-Control": "max-age=60, s-maxage=0"}, [("MISS", {}), ("MISS", {})]),
        ("", {}, [("MISS", {}), ("MISS", {})]),
        ("", {"Expires": "Thu, 31 Dec 2037 23:55:55 GMT"}, [("MISS", {}), ("MISS", {})]),
        ("", {"X-Accel-Expires": "60"}, [("MISS", {}), ("MISS", {})]),
        ("", {"Cache-Control": "private, max-age=60"}, [("MISS", {}), ("MISS", {})]),
        ("", {"Cache-Control": "no-store, max-age=60"}, [("MISS", {}), ("MISS", {})]),
        ("", {"Cache-Control": "no-cache, max-age=60"}, [("MISS", {}), ("MISS", {})]),
        (
            "",
            {"Cache-Control": "max-age=60", "Set-Cookie": "a=1"},
            [("BYPASS", {}), ("BYPASS", {})],
        ),
        # Cache key.
        (
            "",
            {"Cache-Control": "max-age=60"},
            [
                ("MISS", {"Accept": "text/html"}),
                ("MISS", {"Accept": "application/json"}),
                ("MISS", {"Accept": "text/html", "Accept-Language": "de"}),
                ("HIT", {"Accept": "text/html"}),
                ("HIT", {"Accept": "text/html", "X-Locale": "fr"}),
                ("HIT", {"Accept": "text/html", "Accept-Language": "de"}),
                ("HIT", {"Accept": "text/html", "Host": "unknown.example"}),
            ],
        ),
        (
            "",
            {"Cache-Control": "max-age=60", "Vary": "X-Kind"},
            [("MISS", {"X-Kind": "a"}), ("MISS", {"X-Kind": "b"}), ("HIT", {"X-Kind": "b"})],
        ),
        ("", {"Cache-Control": "max-age=60", "Vary": "*"}, [("MISS", {}), ("MISS", {})]),
        # Cookies.
        (
            "",
            {"Cache-Control": "max-age=60"},
            [
                ("BYPASS", {"Cookie": "a=1"}),
                ("MISS", {}),
                ("HIT", {}),
                ("BYPASS", {"Cookie": "0"}),
                ("HIT", {}),
            ],
        ),
        (
            "session.",
            {"Cache-Control": "max-age=60"},
            [
                ("MISS", {"Cookie": "sid=1"}),
                ("MISS", {}),
                ("MISS", {"Cookie": "sid=2; a=1"}),
                ("MISS", {"Cookie": "sid=2; a-b=1"}),
                ("HIT", {"Cookie": "b=3; sid=2"}),
                ("HIT", {"Cookie": "xsid=7"}),
                ("HIT", {"Cookie": "a-b=1;sid=2"}),
                ("HIT", {"Accept": "text/html"}),
                ("MISS", {"X-Locale": "fr"}),
                ("HIT", {"X-Locale": "fr"}),
            ],
        ),
        (
            "pattern.",
            {"Cache-Control": "max-age=60"},
            [
                ("MISS", {}),
                ("HIT", {"Cookie": "other=1; xSESS=1"}),
                ("MISS", {"Cookie": "a=1; SSESS12=1"}),
                ("HIT", {"Cookie": "a=1; SSESS12=1"}),
                ("MISS", {"Cookie": "SESSx=2"}),
                ("HIT", {"Accept": "x"}),
            ],
        ),
        (
            "ignoring.",
            {"Cache-Control": "max-age=60"},
            [("MISS", {"Cookie": "a=1"}), ("HIT", {}), ("HIT", {"Cookie": "a=2"})],
        ),
        # The default TTL, with and without Cache-Control.
        ("ignoring.", {}, [("MISS", {}), ("HIT", {})]),
        ("ignoring.", {"Cache-Control": "public"}, [("MISS", {}), ("MISS", {})]),
        ("ignoring.", {"Cache-Control": "no-cache"}, [("MISS", {}), ("MISS", {})]),
        ("uncached.", {"Cache-Control": "max-age=60"}, [("BYPASS", {}), ("BYPASS", {})]),
    ],
)
async def test_cache(
    edge: Edge,
    host: str,
    response_headers: dict[str, str],
    visits: list[Visit],
    request: pytest.FixtureRequest,
) -> None:
    path = f"/cache/{abs(hash(request.node.name))}"
    seen: set[int] = set()
    async with client(edge.port) as http:
        for expected, headers in visits:
            response = await http.get(
                path,
                headers={
                    "Host": f"{host}{DOMAIN}",
                    **response_header("", *response_headers.items()),
                    **({"Accept": "*/*"} | headers),
                },
            )
            number = response.json()["number"]
            assert (response.headers["X-Platform-Cache"], number in seen) == (
                expected,
                expected == "HIT",
            )
            seen.add(number)


async def test_only_get_and_head_are_cached(edge: Edge) -> None:
    headers = response_header("", ("Cache-Control", "max-age=60"))
    async with client(edge.port) as http:
        for method in ("POST", "PUT", "OPTIONS"):
            for _ in range(2):
                response = await http.request(method, "/cached", headers=headers)
                assert response.headers["X-Platform-Cache"] == "BYPASS"
        for method, expected in [("HEAD", "MISS"), ("GET", "HIT"), ("HEAD", "HIT")]:
            response = await http.request(method, "/cached", headers=headers)
            assert response.headers["X-Platform-Cache"] == expected
            assert (response.content == b"") == (method == "HEAD")


async def test_query_is_part_of_the_cache_key(edge: Edge) -> None:
    headers = response_header("", ("Cache-Control", "max-age=60"))
    async with client(edge.port) as http:
        results = [
            (await http.get(path, headers=headers)).headers["X-Platform-Cache"]
            for path in ("/q", "/q?a", "/q?b", "/q?a", "/q")
        ]
    assert results == ["MISS", "MISS", "MISS", "HIT", "HIT"]


async def test_cached_redirect_is_adapted_to_each_client(edge: Edge) -> None:
    headers = response_header(
        "", ("Cache-Control", "max-age=60"), ("Location", f"https://{DOMAIN}/x"), status=301
    )
    async with client(edge.port) as http:
        first = await http.get("/moved", headers=headers)
        second = await http.get("/moved", headers=headers | {"Host": f"{DOMAIN}:99"})
    assert first.headers["Location"] == f"http://127.0.0.1:{edge.port}/x"
    assert second.headers["X-Platform-Cache"] == "HIT"
    assert second.headers["Location"] == f"http://{DOMAIN}:99/x"


async def test_router_removes_x_accel_buffering(edge: Edge) -> None:
    headers = response_header("", ("X-Accel-Buffering", "no"), ("X-Own", "yes"))
    async with client(edge.port) as http:
        response = await http.get("/", headers=headers)
    assert "X-Accel-Buffering" not in response.headers
    assert response.headers["X-Own"] == "yes"


async def test_router_limits_request_size(edge: Edge) -> None:
    length = 250 * 1024 * 1024 + 1
    response = await raw(
        edge.port,
        f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n",
    )
    assert b" 413 " in response.partition(b"\r\n")[0]
    async with client(edge.port) as http:
        assert (await http.post("/", content=bytes(3_000_000))).json()["body"] == 3_000_000


async def test_router_buffers_requests(edge: Edge) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with client(edge.port) as http:
        response = await http.post("/", content=pieces())
    assert response.json()["headers"]["content-length"] == "6"


# --- the whole chain --------------------------------------------------------------------------


@dataclass
class Chain:
    port: int
    inner: int
    gate: Gate
    backend: Backend


@pytest.fixture(scope="module")
async def chain(scratch: Path) -> AsyncIterator[Chain]:
    """Router, gate, web server and application."""
    directory = scratch / "tree"
    build(directory)
    port, inner = free_port(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        backend, upstream = await stack.enter_async_context(application())
        text = web_server.configuration(
            Application.model_validate({"web": {"locations": LOCATIONS}}),
            directory=str(directory),
            port=inner,
            upstream=upstream,
            scratch=str(scratch / "inner"),
        )
        gate = await stack.enter_async_context(Gate(0, 0))
        await stack.enter_async_context(nginx(text, scratch / "inner", inner))
        await gate.send_to(inner)
        front = router.configuration(
            {"https://{default}/": Route(upstream="app:http")},
            application="app",
            domain=DOMAIN,
            port=port,
            held=gate.held_port,
            direct=gate.direct_port,
            scratch=str(scratch / "outer"),
        )
        await stack.enter_async_context(nginx(front, scratch / "outer", port))
        yield Chain(port, inner, gate, backend)


async def test_requests_through_the_whole_chain(chain: Chain) -> None:
    async with client(chain.port) as http:
        page = await http.get("/page", headers={"X-Client-IP": "192.0.2.1"})
        style = await http.get("/static/big.css", headers={"Accept-Encoding": "gzip"})
        form = await http.post("/form", content=b"x" * 300_000)
    assert page.json()["headers"]["host"] == DOMAIN
    assert page.json()["headers"]["x-client-ip"] == "127.0.0.1"
    assert style.headers["Content-Encoding"] == "gzip"
    assert style.text == "gz" * 100
    assert form.json()["body"] == 300_000


@STREAMS
async def test_stream_is_not_buffered_by_the_chain(
    chain: Chain, kind: str, headers: list[tuple[str, str]]
) -> None:
    await check_stream(chain.port, kind, chain.backend, *headers)


async def test_websocket_through_the_whole_chain(chain: Chain) -> None:
    await websocket(chain.port, DOMAIN)


async def test_chain_forwards_a_closed_connection(chain: Chain) -> None:
    chain.backend.gone.clear()
    chain.backend.go.clear()
    async with (
        client(chain.port) as http,
        http.stream("GET", "/stream", headers=response_header("chunked")) as response,
    ):
        assert await anext(response.aiter_raw()) == b"one\n"
    async with asyncio.timeout(SECONDS):
        await chain.backend.gone.wait()


async def test_deploy_holds_get_and_refuses_post(chain: Chain) -> None:
    async with client(chain.port) as http:
        chain.gate.hold()
        await chain.gate.send_to()
        page = asyncio.create_task(http.get("/held"))
        form = await http.post("/form", content=b"x" * 3_000_000)
        assert form.status_code == 503
        assert form.headers["Retry-After"]
        while not chain.gate.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not page.done()
        await chain.gate.send_to(chain.inner)
        chain.gate.release()
        assert (await page).json()["path"] == "/held"
