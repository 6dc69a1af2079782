"""What Upsun's schema of `.upsun/config.yaml` says, and what it cannot see."""

import json
import re
import subprocess
import tomllib
from typing import Any

import jsonschema
import pytest

from app.settings import ROOT
from embedded_postgres import MAJOR
from quart_upsun.http.headers import SECURITY_HEADERS, STRICT_TRANSPORT_SECURITY
from quart_upsun.testing.programs import require
from quart_upsun.web.assets import DIGESTED_NAME, YEAR_SECONDS, read_manifest
from rehearsal.validation import validate
from tests.platform.upsun import APPLICATION, COMMANDS, CONFIG, CONFIGURATION, HOOKS, WORKERS
from tests.repository import tracked_files

SCHEMA = ROOT.parent / "shared" / "upsun" / "config.schema.json"
STATIC: dict[str, Any] = APPLICATION["web"]["locations"]["/static"]
RULES: dict[str, dict[str, Any]] = STATIC["rules"]
SHELL = {
    **{f"hooks.{name}": text for name, text in HOOKS.items()},
    **COMMANDS,
    **{f"workers.{name}": command for name, command in WORKERS.items()},
}

# Python versions that Upsun supports and has not deprecated.
SUPPORTED = {(3, 13), (3, 14)}


def matching(path: str) -> list[str]:
    """Return the rules for a request, as a web server finds them."""
    return [pattern for pattern in RULES if re.search(pattern, path)]


@pytest.mark.requires("dash")
def test_the_rehearsal_finds_nothing_wrong() -> None:
    schema = SCHEMA if SCHEMA.exists() else None
    assert validate(ROOT, files=tracked_files(), schema=schema) == []
    assert [route.application for route in CONFIGURATION.routes.values()] == ["app", ""]


def test_follows_the_schema() -> None:
    if not SCHEMA.exists():
        pytest.skip("Upsun's schema is not there; `upsun validate` has it built in")
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(CONFIG)


def test_relationship_leads_to_a_service_under_the_name_that_environment_reads() -> None:
    relationships = APPLICATION["relationships"]
    services = {target.partition(":")[0] for target in relationships.values()}
    assert services == set(CONFIG["services"])
    # A relationship named `database` would set DATABASE_URL in a form of its own.
    assert set(relationships) == {"postgresql"}
    environment = (ROOT / ".environment").read_text()
    assert "POSTGRESQL_HOST" in environment
    assert ".postgresql | " in environment


def test_routes_lead_somewhere() -> None:
    routes = CONFIG["routes"]
    upstreams = [route for route in routes.values() if route["type"] == "upstream"]
    redirects = [route for route in routes.values() if route["type"] == "redirect"]
    assert len(upstreams) + len(redirects) == len(routes)
    assert upstreams
    for route in upstreams:
        assert route["upstream"].partition(":")[0] in CONFIG["applications"]
        # A cookie must lead past the cache: it means that the page may be somebody's own.
        assert route["cache"]["cookies"] == ["*"]
        assert route["cache"]["default_ttl"] == 0
    for route in redirects:
        assert routes[route["to"]]["type"] == "upstream"
    assert all(url.startswith("https://") and url.endswith("/") for url in routes)


@pytest.mark.parametrize("text", SHELL.values(), ids=SHELL.keys())
def test_commands_are_read_by_dash(text: str) -> None:
    result = subprocess.run(
        [require("dash"), "-n"], input=text, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("text", HOOKS.values(), ids=HOOKS.keys())
def test_hooks_stop_at_the_first_failure_and_print_no_secret(text: str) -> None:
    assert text.startswith("set -eu\n")
    assert not re.search(r"^\s*set\s+(-\w*x|-o\s+xtrace)", text, re.MULTILINE)


def test_server_runs_in_the_foreground_in_place_of_the_shell() -> None:
    start = COMMANDS["start"].strip()
    assert re.fullmatch(r"exec \S+/python -m app\.server", start)
    assert APPLICATION["web"]["upstream"]["socket_family"] == "tcp"


def test_worker_runs_in_the_foreground_and_like_the_server() -> None:
    """In the same virtual environment, and with the relationships of the application."""
    (start,) = WORKERS.values()
    assert start.strip() == COMMANDS["start"].strip().replace("app.server", "app.worker")
    (worker,) = APPLICATION["workers"].values()
    # What it does not say, it takes over: a relationship of its own would replace the database's.
    assert set(worker) == {"commands"}


def test_everything_else_goes_to_the_application() -> None:
    root = APPLICATION["web"]["locations"]["/"]
    assert root["passthru"] is True
    assert "root" not in root, "a directory here would be served to everybody"


def test_mounts_hide_nothing_and_take_what_is_published() -> None:
    (outdir,) = re.findall(r"--outdir[= ](\S+)", HOOKS["build"])
    ((published, target),) = re.findall(r"publish-assets (\S+) (\S+)", HOOKS["deploy"])
    assert published == outdir
    mounts = APPLICATION["mounts"]
    assert target in mounts
    assert STATIC["root"] == target
    manifest = "app/manifest.json"
    for mount, properties in mounts.items():
        path = mount.strip("/") + "/"
        for file in [*tracked_files(), manifest, f"{outdir}/", ".venv/"]:
            assert not file.startswith(path), f"{mount} hides {file}"
        # Shared by all instances; and the files outlive a new name of the mount.
        assert properties["source"] == "storage"
        assert properties["source_path"]


def test_versions_are_those_of_development() -> None:
    service = CONFIG["services"]["postgresql"]["type"]
    assert service == f"postgresql:{MAJOR}"

    language, _, text = APPLICATION["type"].partition(":")
    version = tuple(map(int, text.split(".")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert language == "python"
    assert version >= oldest
    assert version in SUPPORTED

    package = json.loads((ROOT / "package.json").read_text())
    node = package["engines"]["node"].removeprefix(">=")
    assert f"Node {node} or later" in HOOKS["build"]


def test_container_has_room_for_the_server() -> None:
    # HIGH_CPU, the default of Python containers, begins with 64 MB in a preview.
    assert APPLICATION["container_profile"] == "BALANCED"


def test_files_carry_the_security_headers_under_every_rule() -> None:
    """The headers of a rule replace those of the location; the application's never get there."""
    served = {pattern: rule for pattern, rule in RULES.items() if rule["allow"]}
    assert served
    for block in [STATIC, *served.values()]:
        headers = block["headers"]
        for name in ("X-Content-Type-Options", "Cross-Origin-Resource-Policy"):
            assert headers[name] == SECURITY_HEADERS[name]
        assert headers["Strict-Transport-Security"] == STRICT_TRANSPORT_SECURITY
        policy = headers["Content-Security-Policy"].split("; ")
        assert policy == STATIC["headers"]["Content-Security-Policy"].split("; ")
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert not any(directive.startswith("script-src") for directive in policy)
        assert not any("unsafe-" in directive for directive in policy)
    # What a rule does not say would not be taken over from the location, but from the platform.
    for block in [STATIC, *RULES.values()]:
        assert block["scripts"] is False
        assert block["passthru"] is False


def test_names_with_a_digest_are_kept_for_a_year() -> None:
    names = read_manifest(ROOT / "app" / "manifest.json").values()
    assert names
    for name in names:
        (pattern,) = matching(f"/static/{name}")
        rule = RULES[pattern]
        assert rule["expires"] == "1y"
        assert rule["headers"]["Cache-Control"] == f"public, max-age={YEAR_SECONDS}, immutable"
        assert DIGESTED_NAME.search(name)


@pytest.mark.parametrize(
    "path",
    [
        "/static/main.css",
        "/static/img/favicon.svg",
        "/static/jquery-3.7.1.js",
        "/static/report-january.pdf",
        "/static/main-JOFGSNF6A.css",
        "/static/main-jofgsnf6.css",
        "/static/main-JOFGSNF6",
    ],
)
def test_other_names_are_not(path: str) -> None:
    assert matching(path) == []
    assert DIGESTED_NAME.search(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "/static/.releases/1f3a5c7e.json",
        "/static/.releases/.lock",
        "/static/.main-JOFGSNF6.css.0123456789abcdef.tmp",
        "/static/img/.logo-42FYLJ2S.svg.gz.0123456789abcdef.tmp",
        "/static/.env",
    ],
)
def test_hidden_files_are_refused(path: str) -> None:
    """By one rule alone: no order of the rules lets another one serve them."""
    (pattern,) = matching(path)
    assert RULES[pattern]["allow"] is False
