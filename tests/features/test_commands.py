"""The `quart user` commands, run in a subprocess."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import text

from app.settings import ROOT
from app.user import accounts
from app.user.models import Role
from tests.features.factories import Person

KEY = "a key for tests, of no worth anywhere else"  # the key of the fixture `settings`


@pytest.fixture
def quart(database_url: str) -> "Command":
    return Command(database_url)


class Command:
    """Runs `quart` with the test database."""

    def __init__(self, database_url: str) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "QUART_SKIP_DOTENV": "1",
            "QUART_APP": "app:create_app()",
            "DATABASE_URL": database_url,
            "DATABASE_ENVIRONMENT": "tests",
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


async def role_of(app: Quart, username: str) -> str:
    async with app.extensions["quart_upsun"].database.read() as session:
        user = await accounts.get_user_by_username(session, username)
    assert user is not None
    return user.role


async def test_create_reset_link_and_deactivate(app: Quart, client: Client, quart: Command) -> None:
    words = ("user", "create", "ada", "Ada@example.com", "--administrator")
    refused = quart(*words, stdin="short\n")
    assert (refused.returncode, refused.stderr) == (
        1,
        "Error: Password: Use 10 to 1024 characters.\n",
    )
    done = quart(*words, stdin="correct horse battery\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Created user ada" in done.stdout
    again = quart(*words, stdin="correct horse battery\n")
    assert again.returncode == 1
    assert "Another account already has this username." in again.stderr
    ada = Person("ada", "Ada@example.com")
    await ada.log_in(client)
    assert await role_of(app, "ada") == Role.ADMINISTRATOR

    link = quart("user", "reset-link", "ADA")
    assert link.returncode == 0
    found = re.fullmatch(r"https://www\.example\.com(/reset/\S+/)\n", link.stdout)
    assert found is not None, link.stdout
    form = dict.fromkeys(("password", "confirm"), "staple battery")
    assert (await client.post(found[1], form=form)).status_code == 303

    await Person("ada", password="staple battery").log_in(client)
    assert quart("user", "deactivate", "ada").returncode == 0
    assert (await client.get("/account/")).status_code == 303
    assert "is deactivated" in quart("user", "reset-link", "ada").stderr


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", ""])
async def test_create_strips_line_ending_from_piped_password(
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
def test_invalid_input_exits_with_an_error_message(
    quart: Command, arguments: tuple[str, ...], stdin: bytes
) -> None:
    result = quart("user", *arguments, stdin=stdin.decode("utf-8", "surrogateescape"))
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        ("reset-link {} >/dev/full", "Done, but writing the result to standard output failed: "),
        ("promote {} >&-", "Standard output is closed. Nothing was changed."),
        ("promote {} <&- >/dev/full", "Done, but writing the result"),
        ("create bob bob@example.com <&-", "Standard input is closed. Pipe the password to it."),
    ],
)
async def test_closed_and_full_streams_exit_with_an_error_message(
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


async def test_database_error_exits_with_an_error_message(app: Quart, quart: Command) -> None:
    ada = await Person().register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(text("ALTER TABLE users ADD CHECK (role = 'member') NOT VALID"))
    result = quart("user", "promote", ada.username)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: The database returned an error: ")


async def test_reset_link_requires_public_origin(app: Quart, quart: Command) -> None:
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


async def test_reset_link_requires_the_environment_of_the_database(
    app: Quart, quart: Command
) -> None:
    ada = await Person().register(app)
    quart.environment["DATABASE_ENVIRONMENT"] = "laptop"
    result = quart("user", "reset-link", ada.username)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: The database belongs to the environment tests (local). The environment of this"
        " process is laptop. A link from here would not work there. Run the command there.\n"
    )


async def test_reactivate_restores_login(app: Quart, client: Client, quart: Command) -> None:
    ada = await Person().register(app)
    assert quart("user", "deactivate", ada.username).returncode == 0
    assert (await client.post("/login/", form=ada.login)).status_code == 200
    done = quart("user", "reactivate", ada.username)
    assert (done.returncode, done.stdout) == (0, f"{ada.username} is now active.\n")
    await ada.log_in(client)


async def test_promote_and_demote(app: Quart, quart: Command) -> None:
    ada = await Person().register(app)
    assert quart("user", "promote", ada.username).returncode == 0
    assert await role_of(app, ada.username) == Role.ADMINISTRATOR
    assert quart("user", "demote", ada.username).returncode == 0
    assert await role_of(app, ada.username) == Role.MEMBER
    missing = quart("user", "promote", "nobody")
    assert (missing.returncode, missing.stderr) == (1, "Error: User nobody does not exist.\n")


def test_help_lists_commands_and_wrong_usage_exits_with_2(quart: Command) -> None:
    shown = quart("user", "--help")
    assert shown.returncode == 0
    for command in ("create", "promote", "demote", "deactivate", "reactivate", "reset-link"):
        assert command in shown.stdout
    assert quart("user", "promote").returncode == 2


def test_unreachable_database_exits_with_an_error_message(quart: Command) -> None:
    quart.environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:9/none"
    result = quart("user", "promote", "ada")
    assert result.returncode == 1
    assert "Cannot use the database" in result.stderr
    assert "Traceback" not in result.stderr
