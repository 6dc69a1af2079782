"""`quart` commands in a fresh clone, without a database, assets and keys."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import FEATURES
from app.settings import Settings
from tests.documents.test_documents import DERIVED, section
from tests.repository import checkout

QUART = str(Path(sys.executable).with_name("quart"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone without assets and data."""
    return checkout(tmp_path_factory.mktemp("inspect") / "clone")


def run(clone: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [QUART, *words],
        cwd=clone,
        env={"PATH": os.environ["PATH"], "QUART_SKIP_DOTENV": "1", **variables},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def described(clone: Path) -> dict[str, Any]:
    result = run(clone, "inspect", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def documented_keys() -> dict[str, list[str]]:
    """Return the keys in the table of docs/development.md, each with the keys of its entries."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$",
        section("docs/development.md", "Inspect the application"),
        re.MULTILINE,
    )
    return {name: re.findall(r"`(\w+)`", cell) for name, cell in rows}


def test_format_is_documented(described: dict[str, Any]) -> None:
    keys = documented_keys()
    assert list(described) == list(keys)
    for name, value in described.items():
        if isinstance(value, list):
            assert value, name
            for entry in value:
                assert list(entry) == keys[name]
    text = section("docs/development.md", "Inspect the application")
    columns = [column for model in described["models"] for column in model["columns"]]
    column = next(each for each in columns if each["sanitizing"])
    limit = next(route["limit"] for route in described["routes"] if route["limit"])
    for name in (*column, *limit, *column["sanitizing"]):
        assert f"`{name}`" in text, name


def test_describes_routes_with_their_policies(described: dict[str, Any]) -> None:
    [login] = [
        route
        for route in described["routes"]
        if route["rule"] == "/login/" and route["methods"] == ["POST"]
    ]
    assert login["endpoint"] == "user.check_login"
    assert login["view"] == "app.user.views.check_login"
    assert login["access"] == "public"
    assert login["cache"] == "private, no-store"
    assert login["limit"]["seconds"] == 60
    assert login["audit_events"] == ["logged in", "login failed"]
    [me] = [route for route in described["routes"] if route["rule"] == "/api/v1/me"]
    assert me["access"] == "api"


def test_describes_models_with_sanitizing_rules(described: dict[str, Any]) -> None:
    models = {model["table"]: model for model in described["models"]}
    users = models["users"]
    assert (users["name"], users["module"]) == ("User", "app.user.models")
    columns = {column["name"]: column for column in users["columns"]}
    assert columns["id"]["is_primary_key"]
    assert columns["id"]["type"] == "BIGINT"
    assert columns["email"]["sanitizing"]["kind"] == "replaced"
    assert columns["password_hash"]["sanitizing"]["kind"] == "ended"
    assert models["audit_events"]["is_emptied"]
    [user_id] = [each for each in models["live_events"]["columns"] if each["name"] == "user_id"]
    assert user_id["references"] == ["users.id"]


def test_describes_features_tasks_and_schedules(described: dict[str, Any]) -> None:
    assert [each["module"] for each in described["features"]] == [
        feature.__name__ for feature in FEATURES
    ]
    tasks = {task["name"] for task in described["tasks"]}
    assert {schedule["task"] for schedule in described["schedules"]} <= tasks


def test_describes_settings_without_their_values(clone: Path) -> None:
    secrets = {"SECRET_KEY": "hunter2-key", "MAIL_URL": "smtp://ada:hunter2@mail.example"}
    result = run(
        clone,
        "inspect",
        "--json",
        SITE_NAME="hunter2",
        DATABASE_URL="postgresql://u:hunter2@h/d",
        DATABASE_DIRECT_URL="postgresql://u:hunter2@direct/d",
        DATABASE_REPLICA_URL="postgresql://u:hunter2@replica/d",
        **secrets,
    )
    assert result.returncode == 0
    assert "hunter2" not in result.stdout + result.stderr
    found = {each["name"]: each for each in json.loads(result.stdout)["settings"]}
    assert set(found) == set(Settings.model_fields) - DERIVED
    assert {name for name, each in found.items() if each["is_secret"]} == {
        *("database_url", "database_direct_url", "database_replica_url"),
        *("mail_url", "metrics_token"),
        *("secret_key", "secret_key_fallbacks", "sentry_dsn"),
    }
    assert found["database_url"]["is_required"]
    assert found["site_name"]["variable"] == "SITE_NAME"
    assert found["session_hours"]["default"] == 12
    assert found["log_level"]["type"] == "Literal['debug', 'info', 'warning', 'error']"


def test_reads_the_release(clone: Path, described: dict[str, Any]) -> None:
    assert described["release"] is None
    path = clone / "pyproject.toml"
    before = path.read_text()
    try:
        path.write_text(f'{before}\n[tool.quart-upsun]\nrelease = "0.1.0"\n')
        found = json.loads(run(clone, "inspect", "--json").stdout)
        assert found["release"] == {"release": "0.1.0"}
        path.write_text("[tool")
        result = run(clone, "inspect")
        assert result.returncode == 1
        assert re.fullmatch(r"Error: pyproject\.toml is not valid: .*\n", result.stderr)
    finally:
        path.write_text(before)


def test_text_lists_everything(clone: Path, described: dict[str, Any]) -> None:
    result = run(clone, "inspect")
    assert (result.returncode, result.stderr) == (0, "")
    for part, key in (
        *(("routes", "rule"), ("models", "table"), ("tasks", "name"), ("settings", "variable")),
    ):
        for each in described[part]:
            assert each[key] in result.stdout


@pytest.mark.parametrize("words", [("--help",), ("user", "--help"), ("database", "--help")])
def test_help_needs_no_database(clone: Path, words: tuple[str, ...]) -> None:
    result = run(clone, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: quart" in result.stdout


@pytest.mark.parametrize(
    "words", [("database", "owner"), ("database", "claim", "x"), ("user", "promote", "ada")]
)
def test_commands_that_use_the_database_name_the_missing_variable(
    clone: Path, words: tuple[str, ...]
) -> None:
    result = run(clone, *words)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("DATABASE_URL is not set. Set it to postgresql://")
    assert line.endswith(f" -m development quart {' '.join(words)}")


def test_a_server_still_requires_the_database_and_assets(clone: Path) -> None:
    assert "DATABASE_URL is not set." in run(clone, "run").stderr
    result = run(clone, "run", DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert result.returncode == 1
    assert "Assets are not built" in result.stderr


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (("--help",), {}),
        (("routes",), {}),
        (("db", "upgrade"), {"FLASK_APP": "app:create_app()"}),
        (("run",), {"FLASK_APP": "app:create_app()"}),
    ],
)
def test_flask_command_names_the_command_to_use(
    clone: Path, words: tuple[str, ...], variables: dict[str, str]
) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("flask")), *words],
        cwd=clone,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "This is a Quart application, which `flask` cannot run."
        f" Use `quart {' '.join(words)}` instead.\n"
    )
