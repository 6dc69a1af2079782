"""Static files that the application serves itself, with raw requests."""

from app.settings import ROOT
from quart_upsun.testing.servers import Connection, serving
from quart_upsun.web.assets import read_manifest

FILE = read_manifest(ROOT / "app" / "manifest.json")["main.css"]
CONTENT = (ROOT / "app" / "static" / FILE).read_bytes()


async def test_range_requests() -> None:
    async with serving(1, "app.server") as server:
        connection = await Connection.to(server)
        for headers, status, body in (
            (["Range: bytes=0-4"], 206, CONTENT[:5]),
            (["Range: bytes=-5"], 206, CONTENT[-5:]),
            (["Range: items=0-1"], 200, CONTENT),
            (["Range: bytes=0-1,4-5"], 200, CONTENT),
            # A repeated header is not a list of ranges.
            (["Range: bytes=0-1", "Range: bytes=2-3"], 200, CONTENT),
            (["Range: bytes=nonsense"], 200, CONTENT),
            (["Range: bytes=-5", "If-Range: nonsense"], 200, CONTENT),
        ):
            await connection.get(f"/static/{FILE}", *headers)
            found, received, sent = await connection.read_response()
            assert (found, sent) == (status, body), headers
            assert received["accept-ranges"] == "bytes"
        await connection.get(f"/static/{FILE}", "Range: bytes=99999999-")
        found, received, _ = await connection.read_response()
        assert (found, received["content-range"]) == (416, f"bytes */{len(CONTENT)}")
        await server.stop_cleanly()
        await connection.close()


async def test_unknown_files_are_404() -> None:
    async with serving(1, "app.server") as server:
        connection = await Connection.to(server)
        for name in ("x" * 256, "x" * 8000, "%00", "%ff", "img", "img/", f"{FILE}/", "%2e%2e/x"):
            await connection.get(f"/static/{name}")
            status, headers, _ = await connection.read_response()
            assert (status, headers["cache-control"]) == (404, "private, no-store"), name[:20]
        await server.stop_cleanly()
        await connection.close()
