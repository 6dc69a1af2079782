"""Addresses of what webpack has built."""

import json
from pathlib import Path

from flask import current_app, url_for


def static_url_for(name: str) -> str:
    """Return the address of a built file by its name without a digest.

    The manifest is read each time, because this program starts before the files are built.
    """
    try:
        names = json.loads(Path(current_app.static_folder, "manifest.json").read_text())
    except FileNotFoundError:
        names = {}
    return url_for("static", filename=names.get(name, name))
