"""Static files served by the application: range requests, preconditions, invalid names."""

from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr
from quart.testing import QuartClient as Client

from quart_upsun.database.url import parse_database_url
from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.testing.servers import NO_DATABASE
from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings

CONTENT = bytes(range(100))
PATH = "/static/file.bin"
LENGTH = len(CONTENT)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """A client of the sample application with test files and without a database."""
    settings = Settings(
        database_url=parse_database_url(NO_DATABASE),
        secret_key=SecretStr("a secret key for tests only"),
    )
    app = create_app(settings)
    (tmp_path / "templates").symlink_to(Path(app.root_path) / "templates")
    app.root_path = str(tmp_path)
    (tmp_path / "static" / "folder").mkdir(parents=True)
    (tmp_path / "static" / "file.bin").write_bytes(CONTENT)
    (tmp_path / "static" / "empty.bin").touch()
    (tmp_path / "secret.bin").write_bytes(CONTENT)
    return cast(Client, app.test_client())


@pytest.mark.parametrize(
    ("range_header", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=90-", 90, 100),
        ("bytes=0-", 0, 100),
        ("bytes=-5", 95, 100),
        ("bytes=-100", 0, 100),
        ("bytes=-101", 0, 100),
        ("bytes=99-500", 99, 100),
        (f"bytes=0-{10**30}", 0, 100),
        (f"bytes=-{10**30}", 0, 100),
        ("BYTES = 1-2", 1, 3),
    ],
)
async def test_single_byte_range(client: Client, range_header: str, begin: int, end: int) -> None:
    response = await client.get(PATH, headers={"Range": range_header})
    assert response.status_code == 206
    assert await response.get_data() == CONTENT[begin:end]
    assert response.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{LENGTH}"
    assert response.headers["Content-Length"] == str(end - begin)


@pytest.mark.parametrize(
    "range_header",
    [
        "items=0-1",
        "bytes=0-1,4-5",
        "bytes=4-5,0-1",
        "bytes=-5,0-1",
        "bytes=5-2",
        "bytes=-",
        "bytes=--5",
        "bytes=-0",
        "bytes=a-b",
        "bytes=0-1-2",
        "bytes=",
        "bytes",
        "0-1",
        "",
        "bytes=\xb2-\xb3",
        f"bytes={'9' * 5000}-",
    ],
    ids=lambda range_header: range_header[:20],
)
async def test_unsupported_ranges_return_the_whole_file(client: Client, range_header: str) -> None:
    response = await client.get(PATH, headers={"Range": range_header})
    assert response.status_code == 200
    assert await response.get_data() == CONTENT
    assert "Content-Range" not in response.headers
    assert response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("range_header", ["bytes=100-", "bytes=100-200", f"bytes={10**30}-"])
async def test_range_after_the_end_is_not_satisfiable(client: Client, range_header: str) -> None:
    response = await client.get(PATH, headers={"Range": range_header})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{LENGTH}"
    assert response.headers["Cache-Control"] == "private, no-store"


async def test_ranges_are_ignored_for_head_and_empty_files(client: Client) -> None:
    head = await client.head(PATH, headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(LENGTH))
    for range_header in ("bytes=0-", "bytes=-5"):
        empty = await client.get("/static/empty.bin", headers={"Range": range_header})
        assert (empty.status_code, await empty.get_data()) == (200, b"")


async def test_if_range_compares_the_version(client: Client) -> None:
    whole = await client.get(PATH)
    etag, modified = whole.headers["ETag"], whole.headers["Last-Modified"]
    for value, status in (
        (etag, 206),
        (modified, 206),
        (f"W/{etag}", 200),
        (etag.strip('"'), 200),
        ('"other"', 200),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 200),
        ("nonsense", 200),
        ("", 200),
    ):
        headers = {"Range": "bytes=0-4", "If-Range": value}
        response = await client.get(PATH, headers=headers)
        assert response.status_code == status, value
        assert await response.get_data() == CONTENT[: 5 if status == 206 else LENGTH]
        # The other version may be longer, so only the current one is a 416.
        response = await client.get(PATH, headers=headers | {"Range": "bytes=100-"})
        assert response.status_code == (416 if status == 206 else 200), value


async def test_preconditions_are_checked_before_ranges(client: Client) -> None:
    whole = await client.get(PATH)
    etag, modified = whole.headers["ETag"], whole.headers["Last-Modified"]
    past, future = "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 2099 00:00:00 GMT"
    for headers, status in (
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"other", W/{etag}'}, 304),
        ({"If-None-Match": '"other"', "If-Modified-Since": future}, 206),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": past}, 206),
        ({"If-Modified-Since": "nonsense"}, 206),
        ({"If-Match": etag}, 206),
        ({"If-Match": "*"}, 206),
        ({"If-Match": '"other"'}, 412),
        ({"If-Unmodified-Since": modified}, 206),
        ({"If-Unmodified-Since": past}, 412),
        ({"If-Match": etag, "If-Unmodified-Since": past}, 206),
    ):
        response = await client.get(PATH, headers={"Range": "bytes=0-4", **headers})
        assert response.status_code == status, headers
        body = await response.get_data()
        assert body == CONTENT[:5] if status == 206 else CONTENT not in body


@pytest.mark.parametrize(
    "name",
    [
        "x" * 255,
        "x" * 256,
        "x" * 8000,
        f"folder/{'x' * 256}",
        "x/" * 3000 + "x",
        "%00",
        "file.bin%00",
        "%ff%fe",
        "%ed%a0%80",
        "%F0%9F%8E%89",
        "file.bin/",
        "file.bin/x",
        "folder",
        "folder/",
        "../secret.bin",
        "..%2fsecret.bin",
        "folder/%2e%2e/%2e%2e/secret.bin",
        "",
        ".",
        "..",
        "%5c",
        "%0d%0aX: y",
    ],
    ids=lambda name: name[:20],
)
async def test_invalid_file_names_are_not_found(client: Client, name: str) -> None:
    response = await client.get(f"/static/{name}")
    assert response.status_code == 404
    assert response.headers["Cache-Control"] == "private, no-store"
    for header, value in SECURITY_HEADERS.items():
        assert response.headers[header] == value
