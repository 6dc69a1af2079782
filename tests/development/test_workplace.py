"""The Git hooks and the dev container match the project."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ROOT
from tests.development.clone import environment, share_packages
from tests.repository import checkout


def hooks() -> dict[str, dict[str, Any]]:
    [source] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert source["repo"] == "local"
    return {hook["id"]: hook for hook in source["hooks"]}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    clone = checkout(tmp_path / "clone")
    share_packages(clone)
    return clone


def run(clone: Path, hook: str, *files: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shlex.split(hooks()[hook]["entry"]), *files],
        cwd=clone,
        env=environment(),
        capture_output=True,
        text=True,
    )


def test_hooks_accept_the_repository(clone: Path) -> None:
    for name in ("ruff-check", "ruff-format"):
        result = run(clone, name, "app/__init__.py", "conftest.py")
        assert result.returncode == 0, result.stdout
    result = run(clone, "migrations")
    assert result.returncode == 0, result.stderr


def test_hooks_fix_or_reject_mistakes(clone: Path) -> None:
    module = clone / "app" / "public" / "mistakes.py"
    module.write_text('"""Mistakes."""\n\nimport sys\nimport os\n\nprint( undefined )\n')
    result = run(clone, "ruff-check", "app/public/mistakes.py")
    assert result.returncode == 1
    assert "F821" in result.stdout
    run(clone, "ruff-format", "app/public/mistakes.py")
    assert "print(undefined)" in module.read_text()
    [migration] = (clone / "alembic" / "versions").glob("*_accounts.py")
    text = migration.read_text()
    migration.write_text(text.replace("def upgrade() -> None:", UNSAFE, 1))
    result = run(clone, "migrations")
    assert result.returncode == 1
    assert "ban-drop-table" in result.stderr


UNSAFE = "def upgrade() -> None:\n    op.execute('DROP TABLE old')"


def test_hooks_use_the_commands_of_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lint
    modules = re.findall(r"-m ([\w.]+)", lint[1])
    assert [re.findall(r"-m ([\w.]+)", each["entry"])[0] for each in hooks().values()] == modules


def test_dev_container_has_the_versions_of_production() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    [application] = yaml.safe_load((ROOT / ".upsun" / "config.yaml").read_text())[
        "applications"
    ].values()
    assert container["image"].rpartition(":")[2] == application["type"].rpartition(":")[2]
    [node] = container["features"].values()
    assert int(node["version"]) >= 20


def test_dev_container_sets_up_with_make() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = container["postCreateCommand"].partition("&& make ")[2].split()
    assert command
    assert set(command) <= set(targets)
    # What the container installs is not mixed with what the host has installed.
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for mount in container["mounts"]:
        folder = re.search(r"target=\$\{containerWorkspaceFolder\}(/[^,]+)", mount)
        assert folder
        assert f"{folder[1]}/" in ignored
