"""The table of extensions in docs/from-flask.md: what each does in this application."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ROOT
from tests.flask_application import DIRECTORY, flask_python

# Creates the application without a database, and has the packages of the Flask application.
CREATE = """
import asyncio
from pydantic import SecretStr
from app import create_app
from app.settings import Settings
from quart_upsun.database.url import parse_database_url

app = create_app(
    Settings(
        database_url=parse_database_url("postgresql://127.0.0.1:1/none"),
        secret_key=SecretStr("of no worth anywhere else"),
        log_level="error",
    )
)

async def get():
    return (await app.test_client().get("/about/")).status_code
"""


def run(code: str, *, before: str = "") -> str:
    """Run code with this application and the packages of the Flask application."""
    [packages] = flask_python().parent.parent.glob("lib/python*/site-packages")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", before + CREATE + code],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
    )
    return done.stdout if done.returncode == 0 else done.stderr


def table() -> list[list[str]]:
    """Return the cells of each row."""
    text = (ROOT / "docs" / "from-flask.md").read_text().partition("\n## Extensions\n")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]


def test_table_has_each_extension_and_its_test() -> None:
    names = [name for name, *_ in table()]
    assert names == sorted(names, key=str.lower)
    required = re.findall(
        r"^(?:flask|quart)-[a-z-]+", (DIRECTORY / "requirements.in").read_text(), re.M
    )
    assert sorted(name.lower() for name in names) == sorted(required)
    tests = {
        node.name
        for node in ast.parse(Path(__file__).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    for _, _, _, test in table():
        assert test.strip("`") in tests


@pytest.mark.parametrize("code", re.findall(r"`([a-z_.]+\.[a-z_]+)(?:\(\))?`", str(table())))
def test_names_in_the_table_exist(code: str) -> None:
    module, _, name = code.rpartition(".")
    if module in {"passwords", "login"}:
        module = f"app.user.{module}"
    source = {"site": "app.site", "database": "quart_upsun.database.session"}.get(module, module)
    path = ROOT / source.replace(".", "/")
    files = [path.with_suffix(".py"), path / f"{name}.py", path / "__init__.py"]
    assert any(file.exists() and re.search(rf"\b{name}\b", file.read_text()) for file in files)


def test_flask_bcrypt_works() -> None:
    code = """
from flask_bcrypt import Bcrypt
bcrypt = Bcrypt(app)
print(bcrypt.check_password_hash(bcrypt.generate_password_hash("x", 4), "x"))
print(asyncio.run(get()))
"""
    assert run(code) == "True\n200\n"


def test_flask_caching_is_replaced() -> None:
    code = """
from flask_caching import Cache
cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})

@app.get("/page")
@cache.cached(60)
async def page():
    return "page"

async def try_it():
    app.testing = True
    await app.test_client().get("/page")

asyncio.run(try_it())
"""
    assert "RuntimeError: Working outside of request context." in run(code)
    assert "max-age=0, s-maxage=300" in run(
        "print((asyncio.run(app.test_client().get('/about/'))).headers['Cache-Control'])"
    )


def test_flask_debugtoolbar_does_not_work() -> None:
    code = """
from flask_debugtoolbar import DebugToolbarExtension
app.config["DEBUG_TB_ENABLED"] = True
DebugToolbarExtension(app)
print(asyncio.run(get()))
"""
    assert "RuntimeError: Working outside of request context." in run(code)


def test_flask_login_is_replaced() -> None:
    code = """
from flask_login import LoginManager
LoginManager(app)
print(asyncio.run(get()))
"""
    assert run(code).endswith("\n500\n")  # after the exception in the log


def test_flask_migrate_is_replaced() -> None:
    """Its commands need a Flask application."""
    code = """
from flask_migrate import Migrate, current
from flask_sqlalchemy import SQLAlchemy
Migrate(app, SQLAlchemy())

async def try_it():
    async with app.app_context():
        current()

try:
    asyncio.run(try_it())
except SystemExit as error:
    print("exit code", error.code)
"""
    assert run(code).endswith("exit code 1\n")


def test_flask_sqlalchemy_is_replaced() -> None:
    code = """
from flask_sqlalchemy import SQLAlchemy
app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql://127.0.0.1/none"
db = SQLAlchemy(app)

async def try_it():
    async with app.app_context():
        db.session.execute(db.text("SELECT 1"))

asyncio.run(try_it())
"""
    assert "RuntimeError: Working outside of application context." in run(code)


def test_flask_wtf_is_replaced() -> None:
    code = """
from flask_wtf.csrf import CSRFProtect
CSRFProtect(app)
print(asyncio.run(get()))
"""
    assert run(code).endswith("\n500\n")  # after the exception in the log


def test_quart_flask_patch_changes_asyncio() -> None:
    code = (
        "print(asyncio.Task is asyncio.tasks._PyTask, hasattr(asyncio.BaseEventLoop, 'sync_wait'))"
    )
    assert run(code, before="import quart_flask_patch\n") == "True True\n"
    assert run(code) == "False False\n"
