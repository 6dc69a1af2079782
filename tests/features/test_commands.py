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
from sqlalchemy import text

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
            encoding="utf-8",
            errors="surrogateescape",
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


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", ""])
async def test_the_end_of_a_piped_line_is_not_the_passwords(
    client: Client, quart: Command, end: str
) -> None:
    words = ("user", "create", "ada", "ada@example.com")
    created = quart(*words, stdin=f"correct horse battery{end}")
    assert created.returncode == 0, created.stderr
    await Person("ada", "ada@example.com").log_in(client)


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("create", "ada", "ada@example.com"), b"caf\xe9 password\n"),
        (("create", "ada", "ada@example.com"), b""),
        (("create", "ada", "ada@example.com"), b"\x00" * 20),
        (("create", "a\udcff", "ada@example.com"), b"correct horse battery\n"),
        (("create", "ada", "a" * 5000), b"correct horse battery\n"),
        (("promote", "a\udcffa"), b""),
        (("demote", "a" * 5000), b""),
        (("deactivate", ""), b""),
        (("reactivate", "nobody"), b""),
        (("reset-link", "\u202eada"), b""),
    ],
)
def test_odd_input_is_a_sentence(quart: Command, arguments: tuple[str, ...], stdin: bytes) -> None:
    result = quart("user", *arguments, stdin=stdin.decode("utf-8", "surrogateescape"))
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        ("reset-link {} >/dev/full", "Done, but the result cannot be written to standard output: "),
        ("promote {} >&-", "Standard output is closed; nothing was done."),
        ("promote {} <&- >/dev/full", "Done, but the result cannot be written"),
        ("create bob bob@example.com <&-", "Standard input is closed; pipe the password to it."),
    ],
)
async def test_closed_and_full_streams_are_a_sentence(
    app: Quart, quart: Command, redirection: str, message: str
) -> None:
    ada = await Person().register(app)
    program = Path(sys.executable).with_name("quart")
    result = subprocess.run(  # noqa: ASYNC221 nothing else runs in this loop
        ["sh", "-c", f"exec '{program}' user {redirection.format(ada.username)}"],
        cwd=ROOT,
        env=quart.environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {message}")


async def test_a_refused_statement_is_a_sentence(app: Quart, quart: Command) -> None:
    ada = await Person().register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(text("ALTER TABLE users ADD CHECK (role = 'member') NOT VALID"))
    result = quart("user", "promote", ada.username)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: The database returned an error: ")


async def test_a_link_needs_a_public_origin(app: Quart, quart: Command) -> None:
    ada = await Person().register(app)
    quart.environment.pop("PUBLIC_ORIGIN", None)
    quart.environment |= {
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_ENVIRONMENT": "main",
        "SECRET_KEY": "QmVhdXRpZnVsIGlzIGJldHRlciB0aGFuIHVnbHkuIEV4cGxpY2l0",
    }
    result = quart("user", "reset-link", ada.username)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The public origin is unknown. Set PUBLIC_ORIGIN")


async def test_reactivation(app: Quart, client: Client, quart: Command) -> None:
    ada = await Person().register(app)
    assert quart("user", "deactivate", ada.username).returncode == 0
    assert (await client.post("/login/", form=ada.login)).status_code == 200
    done = quart("user", "reactivate", ada.username)
    assert (done.returncode, done.stdout) == (0, f"{ada.username} is active.\n")
    await ada.log_in(client)


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
    for command in ("create", "promote", "demote", "deactivate", "reactivate", "reset-link"):
        assert command in shown.stdout
    assert quart("user", "promote").returncode == 2


def test_a_database_that_is_away_is_a_sentence(quart: Command) -> None:
    quart.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:9/none"
    result = quart("user", "promote", "ada")
    assert result.returncode == 1
    assert "The database cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
