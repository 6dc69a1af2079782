"""HTTP middleware: Host header, cross-site requests, request bodies, response headers."""

from typing import Any, cast
from urllib.parse import urlencode

import pytest
from pydantic import SecretStr
from quart import Quart, jsonify, request
from quart.testing import QuartClient as Client

from quart_upsun.database.url import parse_database_url
from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.legacy import mount_wsgi
from quart_upsun.platform import Environment
from quart_upsun.testing.servers import NO_DATABASE
from quart_upsun.tests import sample
from quart_upsun.tests.legacy import flask_app
from quart_upsun.tests.sample.settings import Settings
from quart_upsun.web.errors import MESSAGES

HOST = "www.example.com"
LIMIT = 100  # MAX_FORM_PARTS
BOUNDARY = "boundary"
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
# A page of the application, of a mounted one, and of one that is mounted as the fallback.
PAGES = pytest.mark.parametrize("page", ["/about/", "/old/about/", "/old-about/"])


def create_app(settings: Settings) -> Quart:
    """Create the sample application with a Flask application mounted twice."""
    app = sample.create_app(settings)
    for path in ("/old", None):
        mount_wsgi(app, flask_app.create_app(), path, limit=None, requires_schema=False)
    return app


@pytest.fixture
def settings() -> Settings:
    """Settings without a database. The requests of these tests do not need one."""
    return Settings(
        database_url=parse_database_url(NO_DATABASE),
        secret_key=SecretStr("a secret key for tests only"),
        log_level="debug",
    )


def on_upsun(settings: Settings, **properties: Any) -> Quart:
    """Create the application with the settings of an Upsun environment."""
    properties = {
        "name": "main-bvxea6i",
        "type": "production",
        "release": "1f3a",
        "branch": "main",
        "origin": f"https://{HOST}",
        "hosts": frozenset({HOST, "second.example.com:8443", "*.many.example"}),
        "smtp_host": "",
        **properties,
    }
    return create_app(settings.model_copy(update={"platform": Environment(**properties)}))


def multipart_body(count: int) -> bytes:
    """Return a multipart form with `count` fields."""
    head = 'Content-Disposition: form-data; name="name"'
    fields = "".join(f"--{BOUNDARY}\r\n{head}\r\n\r\nvalue\r\n" for _ in range(count))
    return f"{fields}--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def form_client(settings: Settings) -> Client:
    """A client of the application with a route that returns the number of form fields."""
    app = create_app(settings)

    @app.post("/form")
    async def form() -> Any:
        fields = await request.form
        return jsonify(len(list(fields.items(multi=True))))

    return cast(Client, app.test_client())


@PAGES
@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOST, 200),
        ("WWW.EXAMPLE.COM", 200),
        (f"{HOST}:443", 200),
        (f"{HOST}.", 200),
        (f"{HOST}:8443", 400),
        ("second.example.com:8443", 200),
        ("second.example.com", 400),
        ("one.many.example", 200),
        ("One.Many.Example.:443", 200),
        ("many.example", 400),
        ("onemany.example", 400),
        ("evil.example", 400),
        (f"{HOST}.evil.example", 400),
        (f"evil.example/{HOST}", 400),
        ("127.0.0.1", 400),
        ("", 400),
    ],
)
async def test_rejects_unknown_hosts(settings: Settings, host: str, status: int, page: str) -> None:
    client = on_upsun(settings).test_client()
    response = await client.get(page, headers={"Host": host})
    assert response.status_code == status
    # The same applies to redirects and to unknown paths.
    for path in (page.removesuffix("/"), f"{page}nowhere/"):
        response = await client.get(path, headers={"Host": host})
        assert (response.status_code == 400) == (status == 400)
    assert (await client.get("/livez", headers={"Host": host})).status_code == 200


@PAGES
async def test_accepts_any_host_without_known_routes(settings: Settings, page: str) -> None:
    for app in (create_app(settings), on_upsun(settings, origin=None, hosts=frozenset())):
        response = await app.test_client().get(page, headers={"Host": "elsewhere.example"})
        assert response.status_code == 200


@PAGES
async def test_origin_must_match_the_requested_host(settings: Settings, page: str) -> None:
    """For browsers without `Sec-Fetch-Site`."""
    client = on_upsun(settings).test_client()
    for origin, is_rejected in (
        (f"https://{HOST}", False),
        ("https://second.example.com:8443", True),
    ):
        response = await client.post(
            page, headers={"Host": HOST, "Origin": origin, "X-Forwarded-Proto": "https"}
        )
        assert response.status_code == (403 if is_rejected else 405)


@PAGES
async def test_hsts_and_robots_headers_on_upsun(settings: Settings, page: str) -> None:
    for kind, robots in (
        ("production", None),
        ("staging", "noindex, nofollow"),
        ("development", "noindex, nofollow"),
    ):
        client = on_upsun(settings, type=kind).test_client()
        for path, host in ((page, HOST), (page[:-1], HOST), (f"{page}x/", HOST), (page, "evil")):
            response = await client.get(path, headers={"Host": host})
            assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
            assert response.headers.get("X-Robots-Tag") == robots
    response = await create_app(settings).test_client().get(page)
    assert "Strict-Transport-Security" not in response.headers
    assert "X-Robots-Tag" not in response.headers


@pytest.mark.parametrize("kind", [URLENCODED, MULTIPART])
async def test_number_of_form_fields_is_limited(form_client: Client, kind: str) -> None:
    async def send(count: int) -> Any:
        fields = [("name", "value")] * count
        return await form_client.post(
            "/form",
            data=urlencode(fields).encode() if kind == URLENCODED else multipart_body(count),
            headers={"Content-Type": kind},
        )

    most = await send(LIMIT)
    assert (most.status_code, await most.get_json()) == (200, LIMIT)
    more = await send(LIMIT + 1)
    assert more.status_code == 413
    assert MESSAGES[413] in await more.get_data(as_text=True)
    for name, value in SECURITY_HEADERS.items():
        assert more.headers[name] == value


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (URLENCODED, b"name=\xff&\xfe=%ff"),
        (URLENCODED, b"%00=%00&=&&=="),
        (URLENCODED + "; charset=nonsense", b"name=value"),
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=\xff", b"--\xff\r\n\r\n"),
        (MULTIPART, b""),
        (MULTIPART, b"--boundary"),
        (MULTIPART, b"--boundary\r\n\r\nno disposition\r\n--boundary--\r\n"),
        (MULTIPART, b"--boundary\r\nContent-Disposition: form-data\r\n\r\nx\r\n--boundary--"),
        (MULTIPART, b"--boundary\r\nContent-Disposition: \xff\xfe\r\n\r\nx\r\n--boundary--"),
        (MULTIPART, multipart_body(1).replace(b"value", b"\xff\x00")),
        (MULTIPART, multipart_body(2)[:60]),
        (MULTIPART, multipart_body(1).replace(b'name="', b"name*=nonsense''%ff\"")),
        ("application/json", b"{"),
        ("nonsense", b"\x00"),
    ],
)
async def test_malformed_bodies_are_not_server_errors(
    form_client: Client, kind: str, body: bytes
) -> None:
    response = await form_client.post("/form", data=body, headers={"Content-Type": kind})
    assert response.status_code in {200, 400}


@PAGES
async def test_body_limit_applies_to_views_that_do_not_read_the_body(
    form_client: Client, page: str
) -> None:
    size = 1024 * 1024 + 1
    response = await form_client.post(page, data=b"x" * size, headers={"Content-Length": str(size)})
    assert response.status_code == 413
