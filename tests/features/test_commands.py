"""`quart user …` as it is called from a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app.settings import ROOT
from tests.features.factories import Person

KEY = "a key for tests, of no worth anywhere else"  # of the fixture `settings`


@pytest.fixture
def quart(database_url: str) -> "Command":
    return Command(database_url)


class Command:
    """The command `quart`, on the test's database."""

    def __init__(self, database_url: str) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "QUART_APP": "app:create_app()",
            "DATABASE_URL": database_url,
            "SECRET_KEY": KEY,
            "PUBLIC_ORIGIN": "https://www.example.com",
        }

    def __call__(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("quart")), *words],
            cwd=ROOT,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
        )


async def test_from_the_first_user_to_the_last_link(
    app: Quart, client: Client, quart: Command
) -> None:
    words = ("user", "create", "ada", "Ada@example.com", "--administrator")
    refused = quart(*words, stdin="short\n")
    assert (refused.returncode, refused.stderr) == (
        1,
        "Error: Password: Between 10 and 1024 characters.\n",
    )
    done = quart(*words, stdin="correct horse battery\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ada, is created" in done.stdout
    again = quart(*words, stdin="correct horse battery\n")
    assert again.returncode == 1
    assert "Another account has this user name." in again.stderr
    ada = Person("ada", "Ada@example.com")
    await ada.log_in(client)
    assert (await client.get("/admin/")).status_code == 200

    link = quart("user", "reset-link", "ADA")
    assert link.returncode == 0
    found = re.fullmatch(r"https://www\.example\.com(/reset/\S+/)\n", link.stdout)
    assert found is not None, link.stdout
    form = dict.fromkeys(("password", "confirm"), "staple battery")
    assert (await client.post(found[1], form=form)).status_code == 303

    await Person("ada", password="staple battery").log_in(client)
    assert quart("user", "deactivate", "ada").returncode == 0
    assert (await client.get("/admin/")).status_code == 303
    assert "is deactivated" in quart("user", "reset-link", "ada").stderr


async def test_promotion(app: Quart, client: Client, quart: Command) -> None:
    ada = await Person().register(app)
    assert quart("user", "promote", ada.username).returncode == 0
    admin = cast(Client, app.test_client())
    await ada.log_in(admin)
    assert (await admin.get("/admin/")).status_code == 200
    assert quart("user", "demote", ada.username).returncode == 0
    assert (await admin.get("/admin/")).status_code == 404
    missing = quart("user", "promote", "nobody")
    assert (missing.returncode, missing.stderr) == (1, "Error: There is no user nobody.\n")


def test_help_and_wrong_usage(quart: Command) -> None:
    shown = quart("user", "--help")
    assert shown.returncode == 0
    for command in ("create", "promote", "demote", "deactivate", "reset-link"):
        assert command in shown.stdout
    assert quart("user", "promote").returncode == 2


def test_a_database_that_is_away_is_a_sentence(quart: Command) -> None:
    quart.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:9/none"
    result = quart("user", "promote", "ada")
    assert result.returncode == 1
    assert "The database cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
