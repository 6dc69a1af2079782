"""The services that a rehearsal runs, and how it describes them to the application."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from rehearsal import services
from rehearsal.configuration import parse
from rehearsal.findings import Finding, Severity
from rehearsal.network import Ports
from rehearsal.services import Services
from rehearsal.services.base import SHAPES
from rehearsal.services.postgresql import installation
from rehearsal.tests.sample import CONFIG, SERVE, rehearse, sample, summary
from rehearsal.variables import Endpoint, relationship_variables

YAML = ".upsun/config.yaml"


@asynccontextmanager
async def running(text: str, directory: Path, found: list[Finding]) -> AsyncIterator[Services]:
    """Run the services of a configuration, given as the text below `services`."""
    configuration = parse(CONFIG.replace("routes:", f"services:\n{text}\nroutes:"))
    ports = Ports()
    async with AsyncExitStack() as stack:
        stack.callback(ports.close)
        started = Services(
            configuration,
            directory=directory / "services",
            scratch=directory / "scratch",
            ports=ports,
            found=found,
        )
        await started.start(configuration.services, stack)
        yield started


async def execute(endpoint: Endpoint | None, statement: str, database: str = "") -> object:
    """Run a statement on PostgreSQL as an application does; return its first value."""
    assert endpoint is not None
    connection = await asyncpg.connect(
        host=endpoint.ip,
        port=endpoint.port,
        user=endpoint.username,
        password=endpoint.password,
        database=database or endpoint.path,
    )
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


ENDPOINTS = """\
  db:
    type: postgresql:18
    configuration:
      extensions: [vector, postgis]
      databases: [main, legacy]
      endpoints:
        admin:
          privileges: {main: admin, legacy: admin}
        reporter:
          default_database: main
          privileges: {main: ro}
        importer:
          default_database: legacy
          privileges: {legacy: rw}
  copy:
    type: postgres-replica:18
    relationships:
      primary: db:replicator
"""


async def test_postgresql_endpoints_have_their_privileges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rehearsal.services.postgresql.INSTALLATIONS", tmp_path / "none")
    found: list[Finding] = []
    refused = asyncpg.InsufficientPrivilegeError
    async with running(ENDPOINTS, tmp_path, found) as started:
        admin, reporter, importer, copy = (
            started.endpoint(*key)
            for key in (("db", "admin"), ("db", "reporter"), ("db", "importer"), ("copy", ""))
        )
        assert admin is not None
        assert admin.path is None
        for database in ("main", "legacy"):
            # Tables that are created later have the privileges as well.
            await execute(admin, "CREATE TABLE items (id serial, text text)", database)
            await execute(admin, "INSERT INTO items (text) VALUES ('one')", database)
            await execute(admin, "SELECT '[1,2]'::vector", database)
        assert await execute(reporter, "SELECT count(*) FROM items") == 1
        await execute(importer, "INSERT INTO items (text) VALUES ('two')")
        assert await execute(copy, "SELECT count(*) FROM items") == 1
        for endpoint, statement, database in (
            (reporter, "INSERT INTO items (text) VALUES ('three')", ""),
            (reporter, "SELECT 1", "legacy"),
            (importer, "CREATE TABLE more (id int)", ""),
            (importer, "SELECT 1", "main"),
            (copy, "DELETE FROM items", ""),
        ):
            with pytest.raises(refused):
                await execute(endpoint, statement, database)
    (missing,) = [f for f in found if f.severity is Severity.NOT_REHEARSED]
    assert "postgis" in missing.message
    assert copy is not None
    assert copy.query == {"is_master": False}

    # Without endpoints, one user owns what all of them have created.
    async with running("  db: {type: postgresql:18}", tmp_path, found) as started:
        main = started.endpoint("db", "")
        assert main is not None
        assert (main.username, main.path) == ("main", "main")
        assert main.password is not None
        assert main.password.isalnum()
        await execute(main, "ALTER TABLE items ADD COLUMN more int")
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await execute(main, "SELECT 1", "legacy")  # it is no longer in the configuration


@pytest.mark.parametrize(
    ("version", "extensions", "expected"),
    [
        ("15", ["vector"], "15"),  # the version that is asked for
        ("17", ["vector"], None),  # the embedded one has the extension
        ("18", [], None),
        ("18", ["pg_trgm"], "16"),  # the newest one with the extension
        ("18", ["pg_trgm", "postgis"], "15"),
        ("18", ["hstore"], None),  # none has it
    ],
)
def test_installed_postgresql_is_used_for_its_version_or_extensions(
    version: str,
    extensions: list[str],
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, names in {"15": ["pg_trgm", "postgis"], "16": ["pg_trgm"]}.items():
        files = [f"lib/{number}/bin/initdb"]
        files += [f"share/{number}/extension/{name}.control" for name in names]
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
    monkeypatch.setattr("rehearsal.services.postgresql.INSTALLATIONS", tmp_path / "lib")
    monkeypatch.setattr("rehearsal.services.postgresql.EXTENSIONS", tmp_path / "share")
    programs = installation(version, extensions)
    assert programs == (tmp_path / "lib" / expected / "bin" if expected else None)


def query(endpoint: Endpoint | None, statement: str) -> tuple[int, str]:
    """Run a statement on MariaDB; return the client's exit code and its output."""
    assert endpoint is not None
    client = shutil.which("mariadb")
    assert client is not None
    result = subprocess.run(
        [
            *(client, "--no-defaults", f"--host={endpoint.ip}", f"--port={endpoint.port}"),
            *(f"--user={endpoint.username}", "--skip-column-names", "-e", statement),
            *filter(None, [endpoint.path]),
        ],
        env={**os.environ, "MYSQL_PWD": endpoint.password or ""},
        capture_output=True,
        text=True,
    )
    return result.returncode, (result.stdout or result.stderr).strip()


@pytest.mark.requires("mariadbd")
async def test_mariadb_endpoints_have_their_privileges(tmp_path: Path) -> None:
    text = """\
  db:
    type: mariadb:11.4
    configuration:
      schemas: [main, legacy]
      endpoints:
        admin: {default_schema: main, privileges: {main: admin, legacy: admin}}
        reporter: {default_schema: main, privileges: {main: ro}}
"""
    found: list[Finding] = []
    async with running(text, tmp_path, found) as started:
        admin, reporter = started.endpoint("db", "admin"), started.endpoint("db", "reporter")
        create = "CREATE TABLE items (text varchar(9)); INSERT INTO items VALUES ('é')"
        assert query(admin, create) == (0, "")
        assert query(reporter, "SELECT count(*) FROM items") == (0, "1")
        code, message = query(reporter, "DELETE FROM items")
        assert code == 1
        assert "denied" in message
        assert query(reporter, "SELECT 1 FROM legacy.items")[0] == 1
        assert query(admin, "SELECT @@character_set_server") == (0, "utf8mb4")
    assert [finding.severity for finding in found] == [Severity.NOTE]  # the other version

    # The default endpoint has the documented user without a password, and the data is kept.
    async with running("  db: {type: mariadb:11.4}", tmp_path, found) as started:
        user = started.endpoint("db", "mysql")
        assert user is not None
        assert (user.username, user.password, user.path) == ("user", "", "main")
        assert query(user, "SELECT text FROM items") == (0, "é")


async def test_service_that_cannot_run_has_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("rehearsal.services.mariadb.PLACES", ())
    found: list[Finding] = []
    text = "  queue: {type: rabbitmq:4.3}\n  db: {type: mysql:11.4}\n  cache: {type: redis:8.0}"
    async with running(text, tmp_path, found) as started:
        endpoints = {name: started.endpoint(name, "") for name in ("queue", "db", "cache")}
    assert {finding.severity for finding in found} == {Severity.NOT_REHEARSED}
    assert [finding.fix.partition("package: ")[2].rstrip(")") for finding in found] == [
        *("", "mariadb-server", "redis-server")
    ]
    assert all(finding.line for finding in found)
    variables = relationship_variables(
        {name: endpoint for name, endpoint in endpoints.items() if endpoint}, named=True
    )
    assert variables["QUEUE_SCHEME"] == "amqp"
    assert variables["QUEUE_HOST"] == "queue.internal"
    assert variables["DB_USERNAME"] == "user"
    assert int(variables["CACHE_PORT"])


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_relationship_has_the_documented_values(kind: str) -> None:
    shape = SHAPES[kind]
    endpoint = Endpoint(
        service="my-service",
        type=f"{kind}:1",
        rel=shape.endpoint,
        scheme=shape.scheme,
        port=shape.port,
        username=shape.username,
        password="secret" if shape.has_password else None,
        path=shape.path,
        query=shape.query,
    )
    variables = relationship_variables({"my-relation": endpoint}, named=True)
    encoded = variables.pop("PLATFORM_RELATIONSHIPS")
    (entry,) = json.loads(base64.b64decode(encoded))["my-relation"]
    assert entry["host"] == "my-relation.internal"
    assert entry["rel"] == shape.endpoint
    assert entry["host_mapped"] is False
    assert variables["MY_RELATION_PUBLIC"] == "false"
    assert variables["MY_RELATION_USERNAME"] == (shape.username or "")
    assert variables["MY_RELATION_QUERY"] == str(dict(shape.query))
    # Each property is a variable, too, and only a relationship named `database` has a URL.
    assert {name.removeprefix("MY_RELATION_").lower() for name in variables} == set(entry)


def test_relationship_named_database_has_a_url() -> None:
    endpoint = Endpoint(
        *("db", "mariadb:11.4", "mysql", "mysql", 3306),
        username="user",
        password="a/b",
        path="main",
    )
    variables = relationship_variables({"database": endpoint}, named=False)
    assert variables["DATABASE_URL"] == "mysql://user:a%2Fb@127.0.0.1:3306/main"


@pytest.mark.requires("bwrap", "nginx")
@pytest.mark.parametrize("encoded", [False, True])
async def test_url_that_breaks_with_some_passwords_is_a_warning(
    encoded: bool, tmp_path: Path
) -> None:
    password = '$(printf %s "$DB_PASSWORD" | jq -sRr @uri)' if encoded else "$DB_PASSWORD"
    config = CONFIG.replace(
        "    mounts:", '    relationships:\n      db: "db:postgresql"\n    mounts:'
    ).replace("routes:", "services:\n  db:\n    type: postgresql:18\nroutes:")
    url = (
        f'export OTHER=1\nexport GREETING=hello URL="postgresql://main:{password}@$DB_HOST/main"\n'
    )
    repository = sample(tmp_path / "repository", **{YAML: config, ".environment": url})
    report = await rehearse(repository, tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    found = [f"{f.place} {f.message}" for f in report.findings if f.severity is Severity.WARNING]
    assert [text.partition(" breaks")[0] for text in found] == (
        [] if encoded else [".environment:2 URL"]
    )
    assert "%/@" not in summary(report)


@pytest.mark.requires("bwrap", "nginx")
async def test_failure_without_a_service_is_not_rehearsed(tmp_path: Path) -> None:
    config = CONFIG.replace(
        "    mounts:", '    relationships:\n      queue: "queue:rabbitmq"\n    mounts:'
    ).replace("routes:", "services:\n  queue:\n    type: rabbitmq:4.3\nroutes:")
    connect = "import socket; socket.create_connection((os.environ['QUEUE_HOST'], port))"
    serve = SERVE.replace(
        "class Handler", f"port = int(os.environ['QUEUE_PORT'])\n{connect}\nclass Handler", 1
    )
    repository = sample(tmp_path / "repository", **{YAML: config, "serve.py": serve})
    report = await rehearse(repository, tmp_path / "state")
    assert report.exit_code == 2, summary(report)
    (start,) = [finding for finding in report.findings if finding.stage == "restart"]
    assert start.severity is Severity.NOT_REHEARSED
    assert "the service queue" in start.message
    assert "Connection refused" in start.excerpt


async def test_data_is_cloned_and_removed(tmp_path: Path) -> None:
    text = "  db: {type: postgresql:18}"
    async with running(text, tmp_path, []) as started:
        await execute(started.endpoint("db", ""), "CREATE TABLE items AS SELECT 7 AS number")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):  # it is not in the configuration
            await execute(started.endpoint("db", ""), "CREATE EXTENSION vector")
        with pytest.raises(services.ServiceError, match="in use"):
            services.copy(tmp_path / "services", tmp_path / "copy" / "services")
    services.copy(tmp_path / "services", tmp_path / "copy" / "services")
    services.remove(tmp_path / "services")
    assert list((tmp_path / "services").iterdir()) == []
    async with running(text, tmp_path / "copy", []) as started:
        assert await execute(started.endpoint("db", ""), "SELECT number FROM items") == 7
