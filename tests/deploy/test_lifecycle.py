"""The hooks and commands of .upsun/config.yaml, run in the platform's order.

The build runs in a writable container, everything else in one that is read-only outside its mount.
"""

import json
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import httpx
import pytest
from sqlalchemy import URL, make_url

from tests.deploy.releases import Releases
from tests.platform.upsun import (
    COMMANDS,
    HOOKS,
    ORIGIN,
    PASSWORD,
    Container,
    build_variables,
    image,
    reserved_port,
    runtime_variables,
)
from tests.repository import checkout

# These tests share the images of the rehearsals.
pytestmark = pytest.mark.xdist_group("builds")

FIRST, SECOND = "1f3a5c7e", "2b4d6f80"  # values of PLATFORM_TREE_ID
BUILD_SECONDS = 600  # on a slow network
EXIT_SECONDS = 10
UNCHECKED_HASH = 0b01  # https://docs.python.org/3/reference/import.html#pyc-invalidation

Result = subprocess.CompletedProcess[str]
Build = Callable[[Path, str], Result]


@pytest.fixture
def build(releases: Releases, tmp_path: Path) -> Build:
    """Run the build hook; all builds share a cache, as on the platform."""
    cache = releases.state / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    python = image(tmp_path / "image")

    def build(tree: Path, release: str) -> Result:
        container = Container(
            tree,
            build_variables(release),
            read_only=False,
            binds={"/cache": cache},
            read_only_binds={"/image": python},
        )
        return container.run(HOOKS["build"], timeout=BUILD_SECONDS)

    return build


@pytest.fixture
def first(releases: Releases, images: dict[str, Path]) -> Path:
    """The first release after its build hook; tests must not change it."""
    return images[releases.first]


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "mount"
    path.mkdir()
    return path


@pytest.fixture
async def database(server_url: str) -> AsyncIterator[URL]:
    """An empty database; its owner is not a superuser, and its password is hard to quote."""
    name = f"platform_{secrets.token_hex(6)}"
    connection = await asyncpg.connect(server_url)
    try:
        role = await connection.fetchval(
            "SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)", name, PASSWORD
        )
        await connection.execute(role)
        await connection.execute(f'CREATE DATABASE "{name}" OWNER "{name}" TEMPLATE template0')
        yield make_url(server_url).set(username=name, password=PASSWORD, database=name)
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.execute(f'DROP ROLE "{name}"')
    finally:
        await connection.close()


def frozen(
    tree: Path,
    mount: Path,
    database: URL,
    *,
    release: str = FIRST,
    port: int = 8888,
    replaced: dict[str, Path] | None = None,
) -> Container:
    """Return the read-only container of a release; `replaced` are files to replace in it."""
    (tree / "app" / "static").mkdir(exist_ok=True)  # the platform creates the mount point
    limits = tree.parent / "limits.json"
    limits.write_text(json.dumps({"info": {"limits": {"memory": 352, "cpu": 0.5}}}))
    return Container(
        tree,
        runtime_variables(release, database, port),
        read_only=True,
        binds={"/app/app/static": mount},
        read_only_binds={"/run/config.json": limits, **(replaced or {})},
    )


def succeeded(result: Result) -> str:
    """Assert that a command succeeded; return its output."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def failed(result: Result) -> str:
    """Assert that a command failed; return its output."""
    output = result.stdout + result.stderr
    assert result.returncode != 0, output
    return output


def assets(mount: Path) -> dict[str, tuple[bytes, int]]:
    """Return the published files: content and modification time, by name."""
    return {
        str(path.relative_to(mount)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in mount.rglob("*")
        if path.is_file() and ".releases" not in path.parts
    }


def test_build_creates_a_complete_image(first: Path, tmp_path: Path) -> None:
    manifest = json.loads((first / "app" / "manifest.json").read_text())
    for name in manifest.values():
        assert (first / "build" / "static" / name).is_file()
    # The mount would hide files in app/static, and the image must not contain a cache.
    assert not any((first / "app" / "static").glob("*"))
    tracked = {path.name for path in checkout(tmp_path / "untouched").iterdir()}
    of_the_platform = {".global", ".local"}  # for what hooks install with pip and npm
    names = {path.name for path in first.iterdir()}
    assert names == tracked | {".venv", "build"} | of_the_platform


def test_build_compiles_modules_independently_of_file_times(first: Path) -> None:
    modules = [
        *(first / "app").rglob("*.py"),
        *(first / "quart_upsun").rglob("*.py"),
        *(first / "alembic").rglob("*.py"),
        *(first / ".venv" / "lib").rglob("*.py"),
    ]
    assert len(modules) > 1000
    for module in modules:
        # Compiled by the image's Python, whose version may differ from ours.
        (compiled,) = module.parent.glob(f"__pycache__/{module.stem}.cpython-*.pyc")
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == UNCHECKED_HASH, module


LOADS_TEMPLATES = """
from jinja2 import Environment
from app import create_app
from quart_upsun.web import templating

def compile(*args, **options):
    raise SystemExit("a template is compiled at startup")

Environment.compile = compile
templating.load_all(create_app())
"""


def test_build_compiles_templates(first: Path, mount: Path, database: URL) -> None:
    command = f".venv/bin/python -c '{LOADS_TEMPLATES}'"
    succeeded(frozen(first, mount, database).run(command))


def test_first_deploy(first: Path, mount: Path, database: URL, tmp_path: Path) -> None:
    account = {
        "username": "ada",
        "email": "ada@example.com",
        "password": "correct horse battery staple",
        "confirm": "correct horse battery staple",
    }
    router_headers = {
        "Host": ORIGIN.removeprefix("https://"),
        "X-Client-IP": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "Origin": ORIGIN,
    }
    with reserved_port() as port:
        container = frozen(first, mount, database, port=port)
        with (
            container.running(COMMANDS["start"], tmp_path / "log") as server,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=router_headers) as router,
        ):
            succeeded(container.run(COMMANDS["post_start"]))
            assert router.get("/livez").status_code == 200
            ready = router.get("/readyz")
            assert (ready.status_code, ready.json()["reason"]) == (503, "schema")
            refused = router.post("/register/", data=account)
            assert refused.status_code == 503
            assert "Retry-After" in refused.headers

            succeeded(container.run(HOOKS["deploy"]))
            deadline = time.monotonic() + 30
            while router.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline, server.log.read_text()
                time.sleep(0.05)
            assert router.post("/register/", data=account).status_code == 303

            home = router.get("/")
            assert home.status_code == 200
            names = re.findall(r'["\']/static/([^"\']+)', home.text)
            assert {name.rpartition(".")[2] for name in names} >= {"css", "js", "svg"}
            for name in names:
                assert (mount / name).is_file(), name
                if name.endswith((".css", ".js")):
                    assert (mount / f"{name}.gz").is_file()
                    assert (mount / f"{name}.br").is_file()

            published = assets(mount)
            succeeded(container.run(HOOKS["deploy"]))
            assert assets(mount) == published
            assert (
                router.get("/readyz").status_code == 200
            )  # the second run has not changed the database

            server.send(signal.SIGTERM)
            assert server.process.wait(EXIT_SECONDS) == 0, server.log.read_text()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    # The number of processes fits the container's memory limit.
    assert [line["processes"] for line in lines if line["event"] == "server starting"] == [2]
    assert PASSWORD not in server.log.read_text()


def test_next_release_keeps_the_previous_assets(
    first: Path, releases: Releases, images: dict[str, Path], mount: Path, database: URL
) -> None:
    """The releases have different style sheets."""
    succeeded(frozen(first, mount, database).run(HOOKS["deploy"]))
    before = assets(mount)

    second = images[releases.second]
    succeeded(frozen(second, mount, database, release=SECOND).run(HOOKS["deploy"]))

    after = assets(mount)
    assert before.items() <= after.items()
    style_sheets = [name for name in after.keys() - before.keys() if name.endswith(".css")]
    assert len(style_sheets) == 1
    assert b".brand-new" in after[style_sheets[0]][0]


def test_broken_style_sheet_fails_the_build(first: Path, build: Build, tmp_path: Path) -> None:
    tree = shutil.copytree(first, tmp_path / "app", symlinks=True)
    with (tree / "assets" / "css" / "main.scss").open("a") as style:
        style.write("a { color: \n")
    assert "assets/css/main.scss" in failed(build(tree, SECOND))


def test_wrong_hash_fails_the_build(build: Build, tmp_path: Path) -> None:
    tree = checkout(tmp_path / "app")
    locked = tree / "requirements.txt"
    locked.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + 64 * "0", locked.read_text()))
    assert "DO NOT MATCH THE HASHES" in failed(build(tree, SECOND))


@pytest.mark.parametrize("command", ["echo v18.20.4", "exit 127"])
def test_old_or_missing_node_fails_the_build(command: str, tmp_path: Path) -> None:
    python = image(tmp_path / "image")
    node = python / "bin" / "node"  # precedes this machine's on PATH
    node.write_text(f"#!/bin/sh\n{command}\n")
    node.chmod(0o755)
    container = Container(
        checkout(tmp_path / "app"),
        build_variables(FIRST),
        read_only=False,
        read_only_binds={"/image": python},
    )
    output = failed(container.run(HOOKS["build"]))
    assert "Node 20 or later" in output
    assert ("v18.20.4" in output) == ("v18" in command)


def test_deploy_hook_fails_without_a_database(
    first: Path, mount: Path, database: URL, tmp_path: Path
) -> None:
    # The hook waits half a minute for a database that is still starting; do not wait in this test.
    impatient = tmp_path / "alembic.ini"
    text, changes = re.subn(
        r"^connect_seconds = \d+$",
        "connect_seconds = 0",
        (first / "alembic.ini").read_text(),
        flags=re.MULTILINE,
    )
    assert changes == 1
    impatient.write_text(text)
    with reserved_port() as port:
        unreachable = database.set(port=port)
        container = frozen(first, mount, unreachable, replaced={"/app/alembic.ini": impatient})
        output = failed(container.run(HOOKS["deploy"]))
    assert "the database cannot be reached" in output
    assert PASSWORD not in output
    # The error page has its styles.
    assert any(name.endswith(".css") for name in assets(mount))


async def test_deploy_hook_migrates_but_fails_if_it_cannot_publish(
    first: Path, database: URL, tmp_path: Path
) -> None:
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    container = frozen(first, read_only, database, replaced={"/app/app/static": read_only})
    assert "publish-assets" in failed(container.run(HOOKS["deploy"]))
    connection = await asyncpg.connect(database.render_as_string(hide_password=False))
    try:
        assert await connection.fetchval("SELECT version_num FROM alembic_version")
    finally:
        await connection.close()


@pytest.mark.parametrize("listens", [False, True])
def test_post_start_times_out(listens: bool, tmp_path: Path, server_url: str) -> None:
    """The server does not start, or accepts connections and never responds."""
    clock = tmp_path / "image" / "bin" / "date"
    clock.parent.mkdir(parents=True)
    # Each call of this clock advances it by 20 seconds.
    clock.write_text(
        "#!/bin/sh\n"
        "now=$(($(cat /tmp/now 2>/dev/null || echo 1000) + 20))\n"
        'echo "$now" >/tmp/now\n'
        'echo "$now"\n'
    )
    clock.chmod(0o755)
    with reserved_port() as port, socket.socket() as server:
        if listens:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()
        container = Container(
            checkout(tmp_path / "app"),
            runtime_variables(FIRST, make_url(server_url), port),
            read_only=True,
            read_only_binds={"/image": tmp_path / "image"},
        )
        assert "does not answer" in failed(container.run(COMMANDS["post_start"], timeout=30))
