"""Static assets with digested names, listed in the manifest that `npm run build` writes."""

import json
import re
from pathlib import Path
from typing import Any, cast

from quart import Quart, Response, request, send_from_directory
from quart.wrappers.response import FileBody
from werkzeug.datastructures import ContentRange
from werkzeug.exceptions import NotFound, RequestedRangeNotSatisfiable

from quart_upsun.command_line import current_command
from quart_upsun.http.preconditions import make_conditional
from quart_upsun.policy import cache_public, no_rate_limit, public

DIGESTED_NAME = re.compile(r"-[A-Z0-9]{8}\.[^/]+\Z")  # esbuild's naming scheme
YEAR_SECONDS = 365 * 24 * 3600


class AssetsMissingError(SystemExit):
    """The assets are not built. If it is not caught, the process exits with the message."""


def init_app(app: Quart, *, plain_max_age: int) -> None:
    """Add `static_url_for` and `static_files` to templates, and serve `/static`.

    `static_files` is the set of all file names in the manifest. On Upsun, the platform's web server
    serves `/static` instead.

    Args:
        app: the application, with `manifest.json` and `static/` in its root path.
        plain_max_age: how long browsers may cache a file without a digest in its name, in seconds.

    Raises:
        AssetsMissingError: the manifest is missing or invalid, and the process is a server.
    """
    try:
        manifest = read_manifest(Path(app.root_path, "manifest.json"))
    except AssetsMissingError:
        if current_command() is None:
            raise
        manifest = {}

    def static_url_for(endpoint: str, *, filename: str, **values: Any) -> str:
        """Return the digested URL. Name and signature are those of Flask-Static-Digest.

        Raises:
            KeyError: the manifest does not have the file.
        """
        if values:
            return app.url_for(endpoint, filename=manifest[filename], **values)
        return f"/{endpoint}/{manifest[filename]}"

    app.extensions["asset_manifest"] = manifest
    app.jinja_env.globals["static_url_for"] = static_url_for
    app.jinja_env.globals["static_files"] = frozenset(manifest)

    @app.get("/static/<path:filename>", endpoint="static")
    @cache_public(0)
    @public
    @no_rate_limit("a static file, which the platform's web server serves on Upsun")
    async def static(filename: str) -> Response:
        """Serve a built file."""
        digested = DIGESTED_NAME.search(filename) is not None
        if filename.endswith("/"):
            raise NotFound  # `Path` would ignore the slash
        try:
            response = await send_from_directory(
                Path(app.root_path, "static"), filename, conditional=False
            )
        except (OSError, ValueError):  # not a valid file name
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
    """Answer a range request with a single byte range (RFC 9110, section 14).

    Any other `Range` header, such as one with several ranges, gets the whole file. Quart's
    `make_conditional` answers these with 416, and fails for suffix ranges.

    Args:
        response: the response with the whole file, `ETag` and `Last-Modified`.

    Raises:
        RequestedRangeNotSatisfiable: the range starts after the end of the file.
    """
    requested, length = request.range, response.content_length
    if request.method != "GET" or not length or len(request.headers.getlist("Range")) != 1:
        return
    if requested is None or requested.units != "bytes" or len(requested.ranges) != 1:
        return
    validators = {response.headers["ETag"], response.headers["Last-Modified"]}
    if request.headers.get("If-Range", response.headers["ETag"]) not in validators:
        return  # the client has part of another version
    begin, end = requested.ranges[0]
    if begin < 0:  # a suffix range, possibly longer than the file
        begin = max(0, begin + length)
    end = length if end is None else min(end, length)
    if begin >= length:
        raise RequestedRangeNotSatisfiable(length)
    await cast(FileBody, response.response).make_conditional(begin, end)
    response.status_code = 206
    response.content_length = end - begin
    response.content_range = ContentRange("bytes", begin, end, length)


def read_manifest(path: Path) -> dict[str, str]:
    """Read the manifest, which maps plain file names to digested ones.

    Raises:
        AssetsMissingError: the file is missing or invalid.
    """
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise AssetsMissingError(
            f"Assets are not built ({path.name} is missing). Run `npm ci && npm run build`."
        ) from None
    except (OSError, ValueError) as error:
        raise AssetsMissingError(
            f"Cannot read {path.name}: {error}. Run `npm run build`."
        ) from None
    if not isinstance(manifest, dict) or "main.css" not in manifest:
        raise AssetsMissingError(f"{path.name} is not an asset manifest. Run `npm run build`.")
    return manifest
