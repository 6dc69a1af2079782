"""`.upsun/config.yaml` matches Upsun's schema, and fits the rest of the repository."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

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
    """Return the patterns of the rules that match a path."""
    return [pattern for pattern in RULES if re.search(pattern, path)]


@pytest.mark.requires("dash")
def test_validation_has_no_findings() -> None:
    schema = SCHEMA if SCHEMA.exists() else None
    assert validate(ROOT, files=tracked_files(), schema=schema).findings == []
    assert [route.application for route in CONFIGURATION.routes.values()] == ["app", ""]


def uncommented(text: str) -> str:
    """Return the configuration with the commented read replica."""
    lines = []
    for line in text.splitlines():
        match = re.fullmatch(r"( *)# ( *(?:[a-z_-]+:(?: .*)?))", line)
        lines.append(f"{match[1]}{match[2]}" if match else line)
    return "\n".join(lines) + "\n"


@pytest.mark.requires("dash")
def test_commented_read_replica_is_valid(tmp_path: Path) -> None:
    file = tmp_path / ".upsun" / "config.yaml"
    for path in tracked_files():
        if (ROOT / path).is_file():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, tmp_path / path)
    text = uncommented(file.read_text())
    config = yaml.safe_load(text)
    application = config["applications"]["app"]
    assert application["relationships"]["postgresql_replica"] == "postgresql-replica:postgresql"
    replica = config["services"]["postgresql-replica"]
    major = config["services"]["postgresql"]["type"].partition(":")[2]
    assert replica["type"] == f"postgres-replica:{major}"
    assert replica["relationships"] == {"primary": "postgresql:replicator"}
    endpoints = config["services"]["postgresql"]["configuration"]["endpoints"]
    assert endpoints["replicator"] == {"replication": True}
    file.write_text(text)
    schema = SCHEMA if SCHEMA.exists() else None
    assert validate(tmp_path, files=tracked_files(), schema=schema).findings == []


def test_matches_the_json_schema() -> None:
    if not SCHEMA.exists():
        pytest.skip("Upsun's JSON schema is not available; `upsun validate` contains it")
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(CONFIG)


def test_relationship_has_the_name_that_environment_reads() -> None:
    relationships = APPLICATION["relationships"]
    services = {target.partition(":")[0] for target in relationships.values()}
    assert services == set(CONFIG["services"])
    # With a relationship named `database`, Upsun would set DATABASE_URL to a pgsql:// URL.
    assert set(relationships) == {"postgresql"}
    environment = (ROOT / ".environment").read_text()
    assert "POSTGRESQL_HOST" in environment
    assert ".postgresql | " in environment


def test_routes_refer_to_the_application() -> None:
    routes = CONFIG["routes"]
    upstreams = [route for route in routes.values() if route["type"] == "upstream"]
    redirects = [route for route in routes.values() if route["type"] == "redirect"]
    assert len(upstreams) + len(redirects) == len(routes)
    assert upstreams
    for route in upstreams:
        assert route["upstream"].partition(":")[0] in CONFIG["applications"]
        # A request with a cookie must bypass the cache, because the page may be personal.
        assert route["cache"]["cookies"] == ["*"]
        assert route["cache"]["default_ttl"] == 0
    for route in redirects:
        assert routes[route["to"]]["type"] == "upstream"
    assert all(url.startswith("https://") and url.endswith("/") for url in routes)


@pytest.mark.parametrize("text", SHELL.values(), ids=SHELL.keys())
def test_commands_are_valid_dash(text: str) -> None:
    result = subprocess.run(
        [require("dash"), "-n"], input=text, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("text", HOOKS.values(), ids=HOOKS.keys())
def test_hooks_stop_at_the_first_failure_and_print_no_secrets(text: str) -> None:
    assert text.startswith("set -eu\n")
    assert not re.search(r"^\s*set\s+(-\w*x|-o\s+xtrace)", text, re.MULTILINE)


def test_server_replaces_the_shell() -> None:
    start = COMMANDS["start"].strip()
    assert re.fullmatch(r"exec \S+/python -m app\.server", start)
    assert APPLICATION["web"]["upstream"]["socket_family"] == "tcp"


def test_worker_runs_like_the_server() -> None:
    """It has the same virtual environment and the application's relationships."""
    (start,) = WORKERS.values()
    assert start.strip() == COMMANDS["start"].strip().replace("app.server", "app.worker")
    (worker,) = APPLICATION["workers"].values()
    # It inherits all other keys; relationships of its own would replace the application's.
    assert set(worker) == {"commands"}


def test_root_location_passes_all_requests_to_the_application() -> None:
    root = APPLICATION["web"]["locations"]["/"]
    assert root["passthru"] is True
    assert "root" not in root, "a root would make its files public"


def test_mounts_hide_no_files_and_receive_the_published_assets() -> None:
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
        # All instances share the files, and renaming the mount keeps them.
        assert properties["source"] == "storage"
        assert properties["source_path"]


def test_versions_match_development() -> None:
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


def test_container_has_enough_memory() -> None:
    # HIGH_CPU, the default for Python, has only 64 MB in a preview.
    assert APPLICATION["container_profile"] == "BALANCED"


def test_static_files_have_security_headers_under_every_rule() -> None:
    """A rule's headers replace those of the location, and the application's are not sent."""
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
    # For missing keys, a rule has the platform's defaults, and not the location's values.
    for block in [STATIC, *RULES.values()]:
        assert block["scripts"] is False
        assert block["passthru"] is False


def test_files_with_a_digest_are_cached_for_a_year() -> None:
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
def test_files_without_a_digest_are_not_cached_for_a_year(path: str) -> None:
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
def test_hidden_files_are_forbidden(path: str) -> None:
    """No other rule matches them, so the order of the rules does not matter."""
    (pattern,) = matching(path)
    assert RULES[pattern]["allow"] is False
