"""URLs of the files that webpack builds."""

import json
from pathlib import Path

from flask import current_app, url_for


def static_url_for(name: str) -> str:
    """Return the URL of a built file, given its name without a digest.

    The manifest is read each time, because the application starts before the files are built.
    """
    try:
        names = json.loads(Path(current_app.static_folder, "manifest.json").read_text())
    except FileNotFoundError:
        names = {}
    return url_for("static", filename=names.get(name, name))
