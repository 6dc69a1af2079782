"""Checks before a feature is generated: nothing exists that it would overwrite or hide."""

import ast
import subprocess
from pathlib import Path

from pydantic import SecretStr
from quart import Quart

from app import create_app
from app.settings import Settings
from development.feature.generate import REGISTRY, Feature
from development.feature.mistakes import MistakeError
from quart_upsun.database import Base, load_models
from quart_upsun.database.url import parse_database_url


def check_files(root: Path, feature: Feature) -> None:
    """Check that neither the feature's files nor its names exist.

    Raises:
        MistakeError: one does.
    """
    name = feature.name
    for path in (f"app/{name}", f"app/{name}.py", f"app/templates/{name}"):
        if (root / path).exists():
            raise MistakeError(f"NAME={name} is taken by {path}: choose another name.")
    for path in (f"tests/features/{name}", f"tests/browser/pages_{name}.py"):
        if (root / path).exists():
            raise MistakeError(f"NAME={name} is taken by {path}: delete it or choose another name.")
    tree = ast.parse((root / REGISTRY).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        for part in (alias.asname or alias.name, *(getattr(node, "module", None) or "").split("."))
    }
    if name in names:
        raise MistakeError(f"NAME={name} is a name that {REGISTRY} uses: choose another name.")


def check_application(feature: Feature) -> None:
    """Check that no table, model, endpoint or URL has the feature's name.

    Raises:
        MistakeError: one has.
    """
    load_models("app")
    if feature.name in Base.metadata.tables:
        raise MistakeError(f"NAME={feature.name} is the name of a table: choose another name.")
    models = {mapper.class_.__name__ for mapper in Base.registry.mappers}
    if feature.model in models:
        raise MistakeError(
            f"A model named {feature.model} exists already: give another name, such as"
            f" SINGULAR=own_{feature.singular}."
        )
    app = create_app(
        Settings(
            database_url=parse_database_url("postgresql://nowhere/none"),
            secret_key=SecretStr("nothing is signed with this key"),
        )
    )
    if feature.url in url_segments(app) or {feature.name, f"{feature.name}_api"} & {
        *app.blueprints
    }:
        raise MistakeError(
            f"NAME={feature.name} is taken by the pages or the API below /{feature.url}: choose"
            " another name."
        )


def url_segments(app: Quart) -> set[str]:
    """Return the first segment of each URL of the application, and those below `/api/v1/`."""
    paths = [rule.rule.removeprefix("/") for rule in app.url_map.iter_rules()]
    return {
        part.removeprefix("api/v1/").partition("/")[0]
        for path in paths
        for part in (path, path.partition("/")[0])
    }


def check_changes(root: Path, paths: list[str]) -> None:
    """Check that Git can restore the files that are about to be changed.

    Raises:
        MistakeError: one has changes that are not committed.
    """
    status = subprocess.run(
        ["git", "status", "--porcelain", "-z", "--", *paths],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if status.returncode:
        return  # not a repository, so there is nothing to compare with
    changed = [entry[3:] for entry in status.stdout.split("\0") if entry]
    if changed:
        raise MistakeError(
            f"{' and '.join(changed)} {'has' if len(changed) == 1 else 'have'} uncommitted changes:"
            " commit or stash them first, so that you can undo this command with Git."
        )
