"""The tables of commands, files and idioms in docs/from-flask.md: each row is tried."""

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from quart import (
    Quart,
    current_app,
    flash,
    g,
    jsonify,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from quart.testing import QuartClient as Client
from sqlalchemy import select

from app import create_app
from app.extensions import database
from app.settings import ROOT, Settings
from app.user import passwords
from app.user.forms import LoginForm
from app.user.login import current_user
from app.user.models import User
from quart_upsun.logging import get_logger
from tests.features.factories import Person

DOCUMENT = (ROOT / "docs" / "from-flask.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def rows(heading: str) -> Sequence[tuple[str, list[str]]]:
    """Return the first cell of each row of a table, and the code spans of the second."""
    table = DOCUMENT.partition(f"| {heading} | here |\n|---|---|\n")[2].partition("\n\n")[0]
    cells = [line.strip("| ").split(" | ", 1) for line in table.splitlines()]
    return [(there, re.findall(r"`([^`]+)`", here)) for there, here in cells]


COMMANDS, FILES, IDIOMS = rows("command there"), rows("file there"), rows("in a Flask view")


def test_tables_are_found() -> None:
    assert len(COMMANDS) > 10
    assert len(FILES) > 10
    assert len(IDIOMS) > 15


@pytest.mark.parametrize(("there", "here"), COMMANDS, ids=lambda each: str(each))
def test_command_exists(there: str, here: list[str]) -> None:
    commands = [each for each in here if each.split()[0] in {"make", "quart"}]
    assert commands or there.startswith("`flask --app")
    for command in commands:
        program, *words = command.split()
        if program == "make":
            assert words[0] in TARGETS
            continue
        done = subprocess.run(
            [str(Path(sys.executable).with_name("quart")), *words, "--help"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "QUART_APP": "app:create_app()"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f"Usage: {command}" in done.stdout


@pytest.mark.parametrize(("there", "here"), FILES, ids=lambda each: str(each))
def test_file_exists(there: str, here: list[str]) -> None:
    for path in here:
        ignored = path == ".env" and path in (ROOT / ".gitignore").read_text()
        assert ignored or (ROOT / path).exists(), f"{there}: {path}"


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """A user's client for an application with a view that evaluates `expression`."""
    app = create_app(settings)

    async def view() -> str:
        value = await evaluate(current_app.config["EXPRESSION"])
        return repr(value)

    app.add_url_rule("/try/", "try", view, methods=["POST"])
    async with app.test_app():
        client = app.test_client()
        person = Person(username="grace")
        await person.register(app)
        await client.post("/login/", form=person.login)
        yield client  # type: ignore[misc] # the type of the same class


NAMES: dict[str, Any] = {
    "LoginForm": LoginForm,
    "User": User,
    "__name__": __name__,
    "current_app": current_app,
    "current_user": current_user,
    "flash": flash,
    "g": g,
    "get_logger": get_logger,
    "jsonify": jsonify,
    "make_response": make_response,
    "passwords": passwords,
    "redirect": redirect,
    "render_template": render_template,
    "request": request,
    "select": select,
    "session": session,
    "url_for": url_for,
}


async def evaluate(expression: str) -> Any:
    """Evaluate an expression of the document in a view; `db` is a session of the database."""
    code = compile(expression, "docs/from-flask.md", "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with database.read() as db:
        value = eval(code, {**NAMES, "db": db})  # noqa: S307 of this repository
        return await value if inspect.isawaitable(value) else value


EXPECTED = {
    'await render_template("public/about.html")': "<!doctype html>",
    '(await request.form)["username"]': "'ada'",
    "LoginForm(await request.form).validate()": "True",
    "current_user().username": "'grace'",
    'await make_response("text", 201)': "[201 CREATED]",
    'redirect(url_for("public.home"), 303)': "[303 SEE OTHER]",
    'await passwords.hash_password("secret")': "'$argon2id$",
}


@pytest.mark.parametrize(("there", "here"), IDIOMS, ids=lambda each: str(each))
async def test_idiom(client: Client, there: str, here: list[str]) -> None:
    app: Quart = client.app
    if "db.add(…)" in here:  # held by test_changes_are_committed
        return
    code = [each for each in here if "(" in each or "[" in each]
    expressions = [each for each in code if each != "database.read()"]
    assert expressions, there
    for expression in expressions:
        app.config["EXPRESSION"] = expression
        form = {"username": "ada", "password": "secret words"}
        response = await client.post("/try/", form=form)
        text = await response.get_data(as_text=True)
        assert response.status_code == 200, text
        assert EXPECTED.get(expression, "") in text


async def test_changes_are_committed(app: Quart) -> None:
    async with app.app_context():
        async with database.write() as db:
            db.add(User(username="ada", email="ada@example.com", password_hash="none"))
        async with database.read() as db:
            assert await db.scalar(select(User.email).where(User.username == "ada"))
