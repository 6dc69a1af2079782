"""`.environment` in every situation in which Upsun or a developer sources it."""

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from sqlalchemy.engine import make_url

from quart_upsun.testing.programs import require

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".environment"

PASSWORD = "p@ss:w/o%r#d?&é"
ENTROPY = "ENTROPYENTROPYENTROPYENTROPYENTROPYENTROPYENTROPYENTROPY"

# The shell, and the line before `. .environment`.
MODES = {
    "dash": ("dash", ":"),
    "dash-eu": ("dash", "set -eu"),
    "bash": ("bash", ":"),
    "bash-eu-pipefail": ("bash", "set -euo pipefail"),
}
mode = pytest.mark.parametrize(("shell", "options"), MODES.values(), ids=MODES.keys())


def encode(relationships: object) -> str:
    """Return PLATFORM_RELATIONSHIPS as Upsun and `upsun tunnel:info --encode` write it."""
    return base64.b64encode(json.dumps(relationships).encode()).decode()


def endpoint(**changes: object) -> dict[str, Any]:
    """Return one endpoint of a relationship as the platform describes it."""
    return {
        "username": "main",
        "scheme": "pgsql",
        "service": "postgresql",
        "fragment": None,
        "ip": "169.254.10.20",
        "hostname": "abc.postgresql.service._.eu-1.platformsh.site",
        "port": 5432,
        "cluster": "abc-main-bvxea6i",
        "host": "postgresql.internal",
        "rel": "postgresql",
        "path": "main",
        "query": {"is_master": True},
        "password": PASSWORD,
        "type": "postgresql:18",
        "public": False,
        "host_mapped": False,
    } | changes


def tunnel_endpoint(**changes: object) -> dict[str, Any]:
    """Return one endpoint as an open tunnel describes it."""
    local = {"host": "127.0.0.1", "ip": "127.0.0.1", "port": 30000}
    return endpoint(url="pgsql://main:x@127.0.0.1:30000/main", **local) | changes


def service_variables(**changes: str) -> dict[str, str]:
    """Return the service variables of the relationship that `endpoint` describes."""
    properties = {
        "HOST": "postgresql.internal",
        "PORT": "5432",
        "PATH": "main",
        "USERNAME": "main",
        "PASSWORD": PASSWORD,
        "SCHEME": "pgsql",
        "QUERY": "{'is_master': True}",
    } | changes
    return {f"POSTGRESQL_{name}": value for name, value in properties.items()}


def database(
    host: str = "postgresql.internal",
    port: str = "5432",
    path: str = "main",
    username: str = "main",
    password: str = PASSWORD,
) -> dict[str, str]:
    """Return the variables that `.environment` exports for a relationship."""
    login = f"{quote(username, safe='')}:{quote(password, safe='')}"
    return {
        "DB_HOST": host,
        "DB_PORT": port,
        "DB_PATH": path,
        "DB_DATABASE": path,
        "DB_USERNAME": username,
        "DB_PASSWORD": password,
        "DB_SCHEME": "postgresql",
        "DB_CONNECTION": "pgsql",
        "DATABASE_URL": f"postgresql://{login}@{host}:{port}/{quote(path, safe='')}",
    }


def replica(
    host: str = "replica.internal", port: str = "5432", path: str = "main", username: str = "main"
) -> dict[str, str]:
    """Return the variable that `.environment` exports for a replica."""
    url = database(host, port, path, username)["DATABASE_URL"]
    return {"DATABASE_REPLICA_URL": url}


def replica_variables(**changes: str) -> dict[str, str]:
    """Return the service variables of a relationship named `postgresql_replica`."""
    found = service_variables(**({"HOST": "replica.internal"} | changes))
    return {name.replace("POSTGRESQL_", "POSTGRESQL_REPLICA_"): found[name] for name in found}


RELATIONSHIPS = {"PLATFORM_RELATIONSHIPS": encode({"postgresql": [endpoint()]})}
SERVICE = service_variables()
TUNNEL = database(host="127.0.0.1", port="30000")

BUILD = {
    "CI": "1",
    "PLATFORM_APP_DIR": "/app",
    "PLATFORM_APPLICATION": "e30=",
    "PLATFORM_APPLICATION_NAME": "app",
    "PLATFORM_CACHE_DIR": "/tmp/cache",
    "PLATFORM_OUTPUT_DIR": "/app",
    "PLATFORM_PROJECT": "abcdefgh1234567",
    "PLATFORM_PROJECT_ENTROPY": ENTROPY,
    "PLATFORM_SOURCE_DIR": "/app",
    "PLATFORM_TREE_ID": "0123456789abcdef",
    "PLATFORM_VARIABLES": "e30=",
}


def runtime(environment_type: str) -> dict[str, str]:
    """Return the variables of a running container, without those of relationships."""
    return {
        "PLATFORM_APP_DIR": "/app",
        "PLATFORM_APPLICATION": "e30=",
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_BRANCH": "branch",
        "PLATFORM_ENVIRONMENT": "branch-abc123",
        "PLATFORM_ENVIRONMENT_TYPE": environment_type,
        "PLATFORM_PROJECT": "abcdefgh1234567",
        "PLATFORM_PROJECT_ENTROPY": ENTROPY,
        "PLATFORM_ROUTES": "e30=",
        "PLATFORM_SMTP_HOST": "",
        "PLATFORM_TREE_ID": "0123456789abcdef",
        "PORT": "8888",
        "SOCKET": "/run/app.sock",
    }


EVERYWHERE = {"QUART_APP": "app:create_app()", "FLASK_APP": "app:create_app()"}
SECRET = {"SECRET_KEY": ENTROPY}
PRODUCTION = {
    "FLASK_ENV": "production",
    "FLASK_DEBUG": "0",
    "LOG_LEVEL": "info",
    "SEND_FILE_MAX_AGE_DEFAULT": "31556926",
}


def preview(environment_type: str) -> dict[str, str]:
    """Return the variables that `.environment` exports in a preview environment."""
    return {
        "FLASK_ENV": environment_type,
        "FLASK_DEBUG": "1",
        "LOG_LEVEL": "debug",
        "SEND_FILE_MAX_AGE_DEFAULT": "0",
    }


@dataclass(frozen=True)
class Situation:
    """The given variables, and those that sourcing adds or changes in addition to EVERYWHERE."""

    given: dict[str, str]
    exported: dict[str, str] = field(default_factory=dict)


def unusable(relationships: str) -> Situation:
    """Return a situation in which PLATFORM_RELATIONSHIPS is ignored and DATABASE_URL is kept."""
    return Situation(
        {"PLATFORM_RELATIONSHIPS": relationships, "DATABASE_URL": "postgresql://localhost/mine"}
    )


SITUATIONS = {
    "production-relationships": Situation(
        runtime("production") | RELATIONSHIPS, database() | PRODUCTION | SECRET
    ),
    "production-service-variables": Situation(
        runtime("production") | SERVICE, database() | PRODUCTION | SECRET
    ),
    "production-both": Situation(
        runtime("production") | RELATIONSHIPS | SERVICE, database() | PRODUCTION | SECRET
    ),
    "staging-relationships": Situation(
        runtime("staging") | RELATIONSHIPS, database() | preview("staging") | SECRET
    ),
    "development-service-variables": Situation(
        runtime("development") | SERVICE, database() | preview("development") | SECRET
    ),
    "development-both": Situation(
        runtime("development") | RELATIONSHIPS | SERVICE,
        database() | preview("development") | SECRET,
    ),
    "relationship-wins-over-url": Situation(
        RELATIONSHIPS | {"DATABASE_URL": "postgresql://localhost/mine"}, database()
    ),
    "service-variables-win-over-url": Situation(
        SERVICE | {"DATABASE_URL": "postgresql://localhost/mine"}, database()
    ),
    "service-variables-without-host": Situation(
        service_variables(HOST="", PASSWORD="other") | RELATIONSHIPS, database()
    ),
    "service-variables-without-port": Situation(
        service_variables(PORT="", PASSWORD="other") | RELATIONSHIPS, database()
    ),
    "service-variables-without-user": Situation(
        service_variables(USERNAME="", PASSWORD="other") | RELATIONSHIPS, database()
    ),
    "host-alone": Situation(
        {"POSTGRESQL_HOST": "localhost", "DATABASE_URL": "postgresql://localhost/mine"}
    ),
    "relationships-without-path": Situation(
        {"PLATFORM_RELATIONSHIPS": encode({"postgresql": [endpoint(path=None)]})}, database()
    ),
    "service-variables-without-path": Situation(service_variables(PATH=""), database()),
    "other-path-and-user": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {"postgresql": [endpoint(path="my data/1", username="us:er@")]}
            )
        },
        database(path="my data/1", username="us:er@"),
    ),
    "other-path-and-user-service-variables": Situation(
        service_variables(PATH="my data/1", USERNAME="us:er@"),
        database(path="my data/1", username="us:er@"),
    ),
    "first-of-several-endpoints": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {"postgresql": [endpoint(), endpoint(host="replica.internal")]}
            )
        },
        database(),
    ),
    "tunnel-list": Situation(
        {"PLATFORM_RELATIONSHIPS": encode({"postgresql": [tunnel_endpoint()]})}, TUNNEL
    ),
    "tunnel-object": Situation(
        {"PLATFORM_RELATIONSHIPS": encode({"postgresql": {"0": tunnel_endpoint()}})}, TUNNEL
    ),
    "tunnel-object-of-several": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {"postgresql": {"10": tunnel_endpoint(port=30010), "2": tunnel_endpoint()}}
            )
        },
        TUNNEL,
    ),
    "tunnel-port-as-text": Situation(
        {"PLATFORM_RELATIONSHIPS": encode({"postgresql": [tunnel_endpoint(port="30000")]})}, TUNNEL
    ),
    "replica-service-variables": Situation(SERVICE | replica_variables(), database() | replica()),
    "replica-relationships": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {
                    "postgresql": [endpoint()],
                    "postgresql_replica": [
                        endpoint(host="replica.internal", path="my data/1", username="us:er@")
                    ],
                }
            )
        },
        database() | replica(path="my data/1", username="us:er@"),
    ),
    "replica-without-path": Situation(SERVICE | replica_variables(PATH=""), database() | replica()),
    "replica-relationships-without-path": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {"postgresql_replica": [endpoint(host="replica.internal", path=None)]}
            )
        },
        replica(),
    ),
    "replica-tunnel": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {
                    "postgresql": {"0": tunnel_endpoint()},
                    "postgresql_replica": {"0": tunnel_endpoint(port=30001)},
                }
            )
        },
        TUNNEL | replica(host="127.0.0.1", port="30001"),
    ),
    "replica-of-its-own": Situation(
        SERVICE | {"DATABASE_REPLICA_URL": "postgresql://localhost/mine"}, database()
    ),
    "replica-unusable": Situation(
        {
            "PLATFORM_RELATIONSHIPS": encode(
                {"postgresql": [endpoint()], "postgresql_replica": [endpoint(host=None)]}
            ),
            "DATABASE_REPLICA_URL": "postgresql://localhost/mine",
        },
        database(),
    ),
    "replica-host-alone": Situation(
        {"POSTGRESQL_REPLICA_HOST": "localhost", "DATABASE_URL": "postgresql://localhost/mine"}
    ),
    "build": Situation(BUILD, SECRET),
    "laptop": Situation({}),
    "laptop-with-url": Situation({"DATABASE_URL": "postgresql://localhost/mine"}),
    "laptop-own-debug": Situation({"FLASK_DEBUG": "1", "LOG_LEVEL": "warning"}),
    "empty-tunnel": unusable(""),
    "no-base64": unusable("*** no tunnels ***"),
    "no-json": unusable(base64.b64encode(b"No tunnels found.").decode()),
    "cut-off": unusable(RELATIONSHIPS["PLATFORM_RELATIONSHIPS"][:101]),
    "json-and-rubbish": unusable(
        base64.b64encode(json.dumps({"postgresql": [endpoint()]}).encode() + b" }").decode()
    ),
    "shell-code": unusable("$(echo oops >&2); `exit 3`; '"),
    "list": unusable(encode([])),
    "no-relationship": unusable(encode({})),
    "other-relationship": unusable(encode({"database": [endpoint()]})),
    "null-relationship": unusable(encode({"postgresql": None})),
    "no-endpoint": unusable(encode({"postgresql": []})),
    "no-numeric-keys": unusable(encode({"postgresql": endpoint()})),
    "null-host": unusable(encode({"postgresql": [endpoint(host=None)]})),
    "empty-host": unusable(encode({"postgresql": [endpoint(host="")]})),
    "no-port": unusable(encode({"postgresql": [endpoint(port=None)]})),
    "no-user": unusable(encode({"postgresql": [endpoint(username=None)]})),
    "list-as-password": unusable(encode({"postgresql": [endpoint(password=["a", "b"])]})),
    "user-secret": Situation(
        runtime("production") | SERVICE | {"SECRET_KEY": "my own"}, database() | PRODUCTION
    ),
    "user-secret-empty": Situation(
        runtime("production") | SERVICE | {"SECRET_KEY": ""}, database() | PRODUCTION | SECRET
    ),
    "entropy-empty": Situation({"PLATFORM_PROJECT_ENTROPY": ""}),
    "user-log-level": Situation(
        runtime("production") | SERVICE | {"LOG_LEVEL": "error"},
        database() | PRODUCTION | SECRET | {"LOG_LEVEL": "error"},
    ),
    "user-log-level-preview": Situation(
        runtime("staging") | SERVICE | {"LOG_LEVEL": "error"},
        database() | preview("staging") | SECRET | {"LOG_LEVEL": "error"},
    ),
    "environment-type-empty": Situation({"PLATFORM_ENVIRONMENT_TYPE": ""}),
}


@dataclass(frozen=True)
class Run:
    """The output of a script, and the exported variables at its marks."""

    status: int
    stdout: bytes
    stderr: bytes
    snapshots: list[dict[str, str]]


def run(
    shell: str,
    script: str,
    variables: dict[str, str],
    directory: Path,
    *,
    cwd: Path = ROOT,
    stdin: bytes = b"",
) -> Run:
    """Run `script` with only `variables`; each `$MARK` takes a snapshot of the environment.

    `directory` is for the snapshots. The commands at the marks have absolute paths, so that they
    work with any PATH.
    """
    parts = script.split("$MARK")
    files = [directory / f"snapshot-{number}" for number in range(len(parts) - 1)]
    env = shutil.which("env")
    marked = parts[0] + "".join(
        f"'{env}' -0 >'{file}'{part}" for file, part in zip(files, parts[1:], strict=True)
    )
    process = subprocess.run(
        [require(shell), "-c", marked, "shell"],
        env={"PATH": os.environ["PATH"]} | variables,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=30,
    )
    snapshots = [
        dict(
            entry.split("=", 1)
            for entry in os.fsdecode(file.read_bytes()).split("\0")
            if entry and not entry.startswith("_=")  # set by bash: the last command
        )
        for file in files
        if file.exists()
    ]
    return Run(process.returncode, process.stdout, process.stderr, snapshots)


def difference(before: dict[str, str], after: dict[str, str]) -> dict[str, str | None]:
    """Return added and changed variables, and None for each removed variable."""
    names = before.keys() | after.keys()
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def changes(exported: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """Return the variables in `exported` that `given` does not have with the same value."""
    return {name: value for name, value in exported.items() if given.get(name) != value}


@mode
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS.keys())
def test_exports_exactly_the_expected_variables(
    situation: Situation, shell: str, options: str, tmp_path: Path
) -> None:
    require("jq")
    script = f"{options}\n$MARK\n. '{ENVIRONMENT}'\n$MARK\n. '{ENVIRONMENT}'\n$MARK\n"
    result = run(shell, script, situation.given, tmp_path)

    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")
    before, once, twice = result.snapshots
    assert difference(before, once) == changes(EVERYWHERE | situation.exported, situation.given)
    assert twice == once


PASSWORDS = {
    "reserved": "@:/%#?&",
    "blank": " a b ",
    "single-quotes": "a'b''",
    "double-quotes": 'a"b""',
    "dollar": "$HOME$(id)${x}$",
    "backtick": "`id`",
    "backslash": "a\\b\\n\\",
    "plus": "a+b+",
    "dash": "-n",
    "percent": "%41%%s%d",
    "glob": "*?[a-z]~",
    "semicolon": "x; exit 3; (&|<>)!",
    "newline": "a\nb\n",
    "latin": "pässwörd",
    "wide": "пароль€𝄞",
    "ascii": "".join(map(chr, range(1, 128))),
    "two-bytes": "".join(map(chr, range(0x80, 0x100))),
    "none": "",
}


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS.keys())
@pytest.mark.parametrize("form", ["relationships", "service-variables"])
@pytest.mark.parametrize(
    ("shell", "locale"), [("dash", "C"), ("dash", "C.UTF-8"), ("bash", "C"), ("bash", "C.UTF-8")]
)
def test_password_is_exported_raw_and_percent_encoded(
    password: str, form: str, shell: str, locale: str, tmp_path: Path
) -> None:
    require("jq")
    given = {"LC_ALL": locale}
    if form == "relationships":
        given["PLATFORM_RELATIONSHIPS"] = encode({"postgresql": [endpoint(password=password)]})
    else:
        given |= service_variables(PASSWORD=password)
    result = run(shell, f"set -eu\n. '{ENVIRONMENT}'\n$MARK", given, tmp_path)

    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")
    [after] = result.snapshots
    assert after["DB_PASSWORD"] == password
    assert after["DATABASE_URL"] == database(password=password)["DATABASE_URL"]
    # Parsed by SQLAlchemy.
    url = make_url(after["DATABASE_URL"])
    assert (url.username, url.password, url.host) == ("main", password, "postgresql.internal")
    assert (url.port, url.database) == (5432, "main")
    # Parsed as asyncpg does.
    parts = urlsplit(after["DATABASE_URL"])
    assert unquote(parts.password or "") == password
    assert (parts.hostname, parts.port, parts.path) == ("postgresql.internal", 5432, "/main")


@mode
def test_service_variables_require_no_program(shell: str, options: str, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    script = f"{options}\n$MARK\n. '{ENVIRONMENT}'\n$MARK"
    result = run(shell, script, SERVICE | {"PATH": str(nothing)}, tmp_path)

    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")
    assert difference(*result.snapshots) == database() | EVERYWHERE


@mode
def test_relationships_are_ignored_without_jq(shell: str, options: str, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "base64").symlink_to(shutil.which("base64") or "base64")
    given = RELATIONSHIPS | {"PATH": str(programs), "DATABASE_URL": "postgresql://localhost/mine"}
    result = run(shell, f"{options}\n$MARK\n. '{ENVIRONMENT}'\n$MARK", given, tmp_path)

    assert (result.status, result.stdout, result.stderr) == (0, b"", b"")
    assert difference(*result.snapshots) == EVERYWHERE


@mode
@pytest.mark.parametrize("name", ["production-both", "tunnel-object", "laptop", "no-json"])
def test_shell_is_not_changed(name: str, shell: str, options: str, tmp_path: Path) -> None:
    require("jq")
    situation = SITUATIONS[name]
    names_before, names_after = tmp_path / "before", tmp_path / "after"
    functions = "declare -F" if shell == "bash" else ":"
    script = f"""
        {options}
        set -- one 'two three'
        IFS=:
        flags=$- status=
        set >'{names_before}'
        . '{ENVIRONMENT}'
        status=$?
        set >'{names_after}'
        {functions}
        echo "$status $IFS $*"
        [ "$flags" = "$-" ]
    """
    result = run(shell, script, situation.given, tmp_path)

    assert (result.status, result.stdout, result.stderr) == (0, b"0 : one:two three\n", b"")
    own = {"_", "BASH_LINENO", "PIPESTATUS"}
    left = variable_names(names_after) - variable_names(names_before) - own
    assert left == (EVERYWHERE | situation.exported).keys() - situation.given.keys()


def variable_names(listing: Path) -> set[str]:
    """Return the names of the variables in the output of `set`."""
    return set(re.findall(r"(?m)^([A-Za-z_]\w*)=", listing.read_text(errors="replace")))


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("given", [RELATIONSHIPS, SERVICE], ids=["relationships", "service"])
def test_tracing_shows_no_password(given: dict[str, str], shell: str, tmp_path: Path) -> None:
    require("jq")
    result = run(shell, f"set -eux\n. '{ENVIRONMENT}'\nset +x\n$MARK", given, tmp_path)

    assert (result.status, result.stdout) == (0, b"")
    assert result.snapshots[0]["DB_PASSWORD"] == PASSWORD
    assert result.stderr.decode().splitlines() == [f"+ . {ENVIRONMENT}", "+ set +x"]


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("name", ["production-relationships", "production-both", "no-json"])
def test_stdin_is_not_read(name: str, shell: str, tmp_path: Path) -> None:
    """Over SSH, rsync, scp and mount uploads need it."""
    require("jq")
    result = run(
        shell, f". '{ENVIRONMENT}'\ncat", SITUATIONS[name].given, tmp_path, stdin=b"bytes\n"
    )

    assert (result.status, result.stdout, result.stderr) == (0, b"bytes\n", b"")


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_works_with_closed_standard_streams(shell: str, tmp_path: Path) -> None:
    require("jq")
    script = f"set -eu\nexec <&- >&- 2>&-\n. '{ENVIRONMENT}'\n$MARK"
    result = run(shell, script, RELATIONSHIPS, tmp_path)

    assert result.status == 0
    assert result.snapshots[0]["DATABASE_URL"] == database()["DATABASE_URL"]


def test_comments_name_every_exported_variable() -> None:
    text = ENVIRONMENT.read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for name in EVERYWHERE | database() | PRODUCTION | SECRET:
        assert re.search(rf"\b{name}\b", comments), name
