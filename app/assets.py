"""The URLs of built assets. `npm run build` writes the manifest, which is read once at start."""

import json
import re
from pathlib import Path

from quart import Quart, Response, send_from_directory

from app.http import shared
from app.user.login import everybody

ROOT = Path(__file__).parent
MANIFEST = ROOT / "manifest.json"
DIGESTED = re.compile(r"-[A-Z0-9]{8}\.[^/]+\Z")  # as esbuild names files
YEAR = 365 * 24 * 3600


class AssetsMissing(SystemExit):
    """There is no usable asset build. Uncaught, it ends the process with the sentence it holds."""


def init_app(app: Quart, *, plain_max_age: int) -> None:
    """Give templates `static_url_for`, and serve `/static` where no web server does.

    Args:
        plain_max_age: seconds that a file without a digest in its name may be cached.
    """
    manifest = read_manifest(MANIFEST)

    def static_url_for(endpoint: str, *, filename: str) -> str:
        """Return the digested URL, by the name and signature of Flask-Static-Digest."""
        return f"/{endpoint}/{manifest[filename]}"

    app.jinja_env.globals["static_url_for"] = static_url_for

    @app.get("/static/<path:filename>", endpoint="static")
    @shared(0)
    @everybody
    async def static(filename: str) -> Response:
        """Serve a built file on a laptop; on Upsun the platform's web server does."""
        digested = DIGESTED.search(filename) is not None
        response = await send_from_directory(ROOT / "static", filename)
        response.cache_control.public = True
        response.cache_control.no_cache = None
        response.cache_control.max_age = YEAR if digested else plain_max_age
        response.cache_control.immutable = digested
        return response


def read_manifest(path: Path) -> dict[str, str]:
    """Return the map of plain names to digested ones.

    Raises:
        AssetsMissing: the file is missing or broken.
    """
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise AssetsMissing(
            f"The assets are not built ({path.name} is missing): run `npm ci && npm run build`."
        ) from None
    except (OSError, ValueError) as error:
        raise AssetsMissing(f"{path.name} cannot be read: {error}. Run `npm run build`.") from None
    if not isinstance(manifest, dict) or "main.css" not in manifest:
        raise AssetsMissing(f"{path.name} is not a manifest of assets: run `npm run build`.")
    return manifest
