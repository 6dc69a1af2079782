"""The URLs of built assets. `npm run build` writes the manifest, which is read once at start."""

import json
import re
from pathlib import Path
from typing import cast

from quart import Quart, Response, request, send_from_directory
from quart.wrappers.response import FileBody
from werkzeug.datastructures import ContentRange
from werkzeug.exceptions import NotFound, RequestedRangeNotSatisfiable

from quart_upsun.http.preconditions import make_conditional
from quart_upsun.policy import cache_public, no_rate_limit, public

DIGESTED_NAME = re.compile(r"-[A-Z0-9]{8}\.[^/]+\Z")  # as esbuild names files
YEAR_SECONDS = 365 * 24 * 3600


class AssetsMissingError(SystemExit):
    """There is no usable asset build. Uncaught, it ends the process with the sentence it holds."""


def init_app(app: Quart, *, plain_max_age: int) -> None:
    """Give templates `static_url_for`, and serve `/static` where no web server does.

    Templates also know the names of all built files, as `static_files`.

    Args:
        app: the application, with `manifest.json` and the files in `static/` below its root path.
        plain_max_age: seconds that a file without a digest in its name may be cached.
    """
    manifest = read_manifest(Path(app.root_path, "manifest.json"))

    def static_url_for(endpoint: str, *, filename: str) -> str:
        """Return the digested URL, by the name and signature of Flask-Static-Digest."""
        return f"/{endpoint}/{manifest[filename]}"

    app.jinja_env.globals["static_url_for"] = static_url_for
    app.jinja_env.globals["static_files"] = frozenset(manifest)

    @app.get("/static/<path:filename>", endpoint="static")
    @cache_public(0)
    @public
    @no_rate_limit("a file, which on Upsun the platform's web server sends")
    async def static(filename: str) -> Response:
        """Serve a built file on a laptop; on Upsun the platform's web server does."""
        digested = DIGESTED_NAME.search(filename) is not None
        if filename.endswith("/"):
            raise NotFound  # joining paths would drop it and find the file
        try:
            response = await send_from_directory(
                Path(app.root_path, "static"), filename, conditional=False
            )
        except (OSError, ValueError):  # no file can have such a name
            raise NotFound from None
        response.headers["Accept-Ranges"] = "bytes"
        response = make_conditional(response)
        if response.status_code == 200:
            await _send_range(response)
        response.cache_control.public = True
        response.cache_control.no_cache = None
        response.cache_control.max_age = YEAR_SECONDS if digested else plain_max_age
        response.cache_control.immutable = digested
        return response


async def _send_range(response: Response) -> None:
    """Reduce the response to the one range of bytes that is asked for (RFC 9110, section 14).

    Whatever is not a single range of bytes gets the whole file, as for several ranges. Not by
    Quart's `make_conditional`: it answers 416 to these, and fails for the last bytes of a file.

    Args:
        response: the whole file, with `ETag` and `Last-Modified`.

    Raises:
        RequestedRangeNotSatisfiable: the range begins after the end of the file.
    """
    asked, length = request.range, response.content_length
    if request.method != "GET" or not length or len(request.headers.getlist("Range")) != 1:
        return
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return
    validators = {response.headers["ETag"], response.headers["Last-Modified"]}
    if request.headers.get("If-Range", response.headers["ETag"]) not in validators:
        return  # the client has a part of another version
    begin, end = asked.ranges[0]
    if begin < 0:  # the last bytes, or all of a shorter file
        begin = max(0, begin + length)
    end = length if end is None else min(end, length)
    if begin >= length:
        raise RequestedRangeNotSatisfiable(length)
    await cast(FileBody, response.response).make_conditional(begin, end)
    response.status_code = 206
    response.content_length = end - begin
    response.content_range = ContentRange("bytes", begin, end, length)


def read_manifest(path: Path) -> dict[str, str]:
    """Return the map of plain names to digested ones.

    Raises:
        AssetsMissingError: the file is missing or broken.
    """
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise AssetsMissingError(
            f"The assets are not built ({path.name} is missing): run `npm ci && npm run build`."
        ) from None
    except (OSError, ValueError) as error:
        raise AssetsMissingError(
            f"{path.name} cannot be read: {error}. Run `npm run build`."
        ) from None
    if not isinstance(manifest, dict) or "main.css" not in manifest:
        raise AssetsMissingError(f"{path.name} is not a manifest of assets: run `npm run build`.")
    return manifest
