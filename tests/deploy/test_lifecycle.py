"""The shipped hooks and commands, run literally and in the platform's order.

A build in a writable container, then everything else in one that is read-only outside its mount.
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

# The images are those of the rehearsals.
pytestmark = pytest.mark.xdist_group("builds")

FIRST, SECOND = "1f3a5c7e", "2b4d6f80"  # what PLATFORM_TREE_ID is made of
BUILD_SECONDS = 600  # on a slow network
EXIT_SECONDS = 10
UNCHECKED_HASH = 0b01  # https://docs.python.org/3/reference/import.html#pyc-invalidation

Result = subprocess.CompletedProcess[str]
Build = Callable[[Path, str], Result]


@pytest.fixture
def build(releases: Releases, tmp_path: Path) -> Build:
    """Run the build hook; all builds share the platform's cache."""
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
    """The first release, as the build hook left it. Nobody writes there afterwards."""
    return images[releases.first]


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "mount"
    path.mkdir()
    return path


@pytest.fixture
async def database(server_url: str) -> AsyncIterator[URL]:
    """An empty database whose owner is nobody special, and has a password full of traps."""
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
    """Return the container of a release; `replaced` are files that it has in another version."""
    (tree / "app" / "static").mkdir(exist_ok=True)  # the platform makes the mount's place
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
    """Fail with the output of a command that failed; return the output of one that did not."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def failed(result: Result) -> str:
    """Return the output of a command that failed by itself."""
    output = result.stdout + result.stderr
    assert result.returncode != 0, output
    return output


def assets(mount: Path) -> dict[str, tuple[bytes, int]]:
    """Return what is published: content and time of change by name."""
    return {
        str(path.relative_to(mount)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in mount.rglob("*")
        if path.is_file() and ".releases" not in path.parts
    }


def test_build_makes_a_complete_image(first: Path, tmp_path: Path) -> None:
    manifest = json.loads((first / "app" / "manifest.json").read_text())
    for name in manifest.values():
        assert (first / "build" / "static" / name).is_file()
    # The mount would hide it, and home is here: no cache may get into the image.
    assert not any((first / "app" / "static").glob("*"))
    tracked = {path.name for path in checkout(tmp_path / "untouched").iterdir()}
    assert {path.name for path in first.iterdir()} == tracked | {".venv", "build"}


def test_build_compiles_for_good(first: Path) -> None:
    """Every module; whatever becomes of the times of the files."""
    modules = [
        *(first / "app").rglob("*.py"),
        *(first / "quart_upsun").rglob("*.py"),
        *(first / "alembic").rglob("*.py"),
        *(first / ".venv" / "lib").rglob("*.py"),
    ]
    assert len(modules) > 1000
    for module in modules:
        # By the image's Python, which may be another than ours.
        (compiled,) = module.parent.glob(f"__pycache__/{module.stem}.cpython-*.pyc")
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == UNCHECKED_HASH, module


LOADS_TEMPLATES = """
from jinja2 import Environment
from app import create_app
from quart_upsun.web import templating

def compile(*args, **options):
    raise SystemExit("a template is compiled at the start")

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
            deadline = time.monotonic() + 5
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
            assert router.get("/readyz").status_code == 200  # nothing happened to the database

            server.send(signal.SIGTERM)
            assert server.process.wait(EXIT_SECONDS) == 0, server.log.read_text()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    # As many as fit the container, by what it says of itself.
    assert [line["processes"] for line in lines if line["event"] == "server starting"] == [2]
    assert PASSWORD not in server.log.read_text()


def test_next_release_keeps_the_files_of_the_last(
    first: Path, releases: Releases, images: dict[str, Path], mount: Path, database: URL
) -> None:
    """Whose style sheet is another one."""
    succeeded(frozen(first, mount, database).run(HOOKS["deploy"]))
    before = assets(mount)

    second = images[releases.second]
    succeeded(frozen(second, mount, database, release=SECOND).run(HOOKS["deploy"]))

    after = assets(mount)
    assert before.items() <= after.items()
    style_sheets = [name for name in after.keys() - before.keys() if name.endswith(".css")]
    assert len(style_sheets) == 1
    assert b".brand-new" in after[style_sheets[0]][0]


def test_broken_style_sheet_stops_the_release(first: Path, build: Build, tmp_path: Path) -> None:
    tree = shutil.copytree(first, tmp_path / "app", symlinks=True)
    with (tree / "assets" / "css" / "main.scss").open("a") as style:
        style.write("a { color: \n")
    assert "assets/css/main.scss" in failed(build(tree, SECOND))


def test_wrong_hash_stops_the_release(build: Build, tmp_path: Path) -> None:
    tree = checkout(tmp_path / "app")
    locked = tree / "requirements.txt"
    locked.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + 64 * "0", locked.read_text()))
    assert "DO NOT MATCH THE HASHES" in failed(build(tree, SECOND))


@pytest.mark.parametrize("says", ["echo v18.20.4", "exit 127"])
def test_old_or_missing_node_is_named(says: str, tmp_path: Path) -> None:
    python = image(tmp_path / "image")
    node = python / "bin" / "node"  # found before this machine's
    node.write_text(f"#!/bin/sh\n{says}\n")
    node.chmod(0o755)
    container = Container(
        checkout(tmp_path / "app"),
        build_variables(FIRST),
        read_only=False,
        read_only_binds={"/image": python},
    )
    output = failed(container.run(HOOKS["build"]))
    assert "Node 20 or later" in output
    assert ("v18.20.4" in output) == ("v18" in says)


def test_deploy_hook_fails_without_a_database(
    first: Path, mount: Path, database: URL, tmp_path: Path
) -> None:
    # It waits for a database that is still starting, for half a minute; here there is none to come.
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
        nobody = database.set(port=port)
        container = frozen(first, mount, nobody, replaced={"/app/alembic.ini": impatient})
        output = failed(container.run(HOOKS["deploy"]))
    assert "the database cannot be reached" in output
    assert PASSWORD not in output
    # The page that says so has its styles.
    assert any(name.endswith(".css") for name in assets(mount))


async def test_deploy_hook_migrates_and_fails_where_it_cannot_publish(
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
def test_post_start_gives_up(listens: bool, tmp_path: Path, server_url: str) -> None:
    """On a server that never comes, and on one that takes connections and never answers."""
    clock = tmp_path / "image" / "bin" / "date"
    clock.parent.mkdir(parents=True)
    # Each look at this clock takes 20 seconds.
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
