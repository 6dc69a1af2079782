"""The `quart` commands of an application in one module, without migrations, assets and database."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

APPLICATION = """
from quart import Quart

from quart_upsun import QuartUpsun
from quart_upsun.jobs import JobContext, Schedule, Task
from quart_upsun.policy import audited, no_store, public
from quart_upsun.security import Limit, rate_limit
from quart_upsun.settings import Settings, load_settings


async def greet(job: JobContext) -> None:
    pass


GREET = Task("greet", greet, timeout=5, backoff_seconds=(1, 2), max_concurrent=3)


def create_app() -> Quart:
    app = Quart(__name__, static_folder=None)
    upsun = QuartUpsun()
    upsun.init_app(app, load_settings(Settings)).jobs.register(Schedule(GREET, "5 4 * * *"))

    @app.post("/greetings/<name>")
    @public
    @no_store
    @audited("greeted")
    @rate_limit(Limit("greet", count=3, seconds=60))
    async def greetings(name: str) -> str:
        return name

    @app.get("/undeclared")
    async def undeclared() -> str:
        return ""

    return app
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(APPLICATION)
    return tmp_path


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("quart")), "--app", "tiny", *words],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )


def test_inspect_describes_the_declarations(directory: Path) -> None:
    result = run(directory, "inspect", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert (found["version"], found["application"]) == (1, "tiny")
    assert found["release"] is None
    assert found["features"] == []
    routes = {route["rule"]: route for route in found["routes"]}
    assert routes["/greetings/<name>"] == {
        "rule": "/greetings/<name>",
        "methods": ["POST"],
        "endpoint": "greetings",
        "view": "tiny.create_app.<locals>.greetings",
        "access": "public",
        "scope": None,
        "cache": "private, no-store",
        "limit": {"name": "greet", "count": 3, "seconds": 60, "is_partial": False},
        "no_limit_reason": None,
        "audit_events": ["greeted"],
        "no_audit_reason": None,
    }
    assert routes["/undeclared"]["access"] is None
    assert routes["/undeclared"]["limit"] is None
    assert {
        "name": "greet",
        "function": "tiny.greet",
        "timeout_seconds": 5,
        "backoff_seconds": [1, 2],
        "priority": 0,
        "max_concurrent": 3,
    } in found["tasks"]
    assert {"task": "greet", "cron": "5 4 * * *"} in found["schedules"]
    assert "mails" in {model["table"] for model in found["models"]}
    assert all(model["module"].startswith("quart_upsun.") for model in found["models"])


def test_commands_work_without_a_package_of_their_own(directory: Path) -> None:
    text = run(directory, "inspect").stdout
    assert "/greetings/<name>" in text
    assert "3 in 60 s" in text
    assert "tiny.greet" in text
    routes = run(directory, "routes")
    assert "greetings" in routes.stdout
    help_text = run(directory, "--help").stdout
    assert "inspect" in help_text
    assert "  db " not in help_text  # there is no alembic.ini
    missing = run(directory, "shell")
    assert missing.returncode == 1
    assert missing.stderr == (
        "DATABASE_URL is not set. Set it to postgresql://user:password@host:port/database.\n"
    )
