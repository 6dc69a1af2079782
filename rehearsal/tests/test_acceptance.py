"""The validation has an error for what the platform rejects, and for nothing else."""

from datetime import date
from pathlib import Path

import pytest

from rehearsal import knowledge
from rehearsal.findings import Finding, Severity
from rehearsal.validation import validate

BASE = """\
applications:
  app:
    type: python:3.13
    web:
      commands:
        start: gunicorn -b 127.0.0.1:$PORT app:app
      locations:
        /:
          passthru: true
"""
ROUTES = """\
routes:
  "https://{default}/":
    type: upstream
    upstream: "app:http"
"""
SECOND = """\
  api:
    type: nodejs:24
    web: {commands: {start: node api.js}}
"""


def check(directory: Path, text: str) -> list[Finding]:
    file = directory / "config.yaml"
    file.write_text(text)
    return validate(directory, files=None, paths=[file], complete=False).findings


def errors(findings: list[Finding]) -> list[str]:
    return [f.message for f in findings if f.severity is Severity.ERROR]


def app(text: str) -> str:
    """Return a configuration with more keys of the application."""
    return f"{BASE}{text}{ROUTES}"


def service(text: str, relationship: str = "") -> str:
    """Return a configuration with a service, and perhaps a relationship with it."""
    more = f"    relationships: {{{relationship}}}\n" if relationship else ""
    return f"{BASE}{more}services:\n{text}{ROUTES}"


def route(text: str) -> str:
    """Return a configuration with more keys of the route."""
    return f"{BASE}{ROUTES}{text}"


ACCEPTED = {
    "minimal": BASE,
    "empty sections": f"{BASE}services:\nroutes:\n",
    "anchor at the top level": "x-base: &base\n  A: 1\n"
    + app("    variables: {env: {<<: *base, B: true, C: 1.5, D: text}}\n"),
    "anchor under any name": f".base: &base {{a: 1}}\n{BASE}",
    "tasks": f"{BASE}tasks:\n  import: {{type: 'python:3.13', command: python import.py}}\n",
    "included hook": app("    hooks:\n      build: !include {type: string, path: build.sh}\n"),
    "included application": f"applications:\n  app: !include ./apps/app.yaml\n{ROUTES}",
    "archive": service(
        "  s: {type: 'solr:9.9', configuration: {conf_dir: !archive solr}}\n", "s: 's:solr'"
    ),
    "old form of a cron": app("    crons: {a: {spec: '0 3 * * *', cmd: x}}\n"),
    "cron every 19 minutes": app(
        "    crons: {a: {spec: '*/19 * * * *', commands: {start: x}, shutdown_timeout: 5}}\n"
    ),
    "frequent cron": app("    crons: {a: {spec: '* * * * *', commands: {start: x}}}\n"),
    "named days": app(
        "    crons: {a: {spec: 'H 3 * jan-jun MON-FRI', commands: {start: x}, timeout: 60}}\n"
    ),
    "retired version": app("").replace("3.13", "3.8"),
    "stack as a list": BASE.replace("type: python:3.13", "stack: ['python@3.13', 'nodejs@22']"),
    "stack with packages": BASE.replace(
        "type: python:3.13",
        "type: composable:26.05\n    stack:\n      runtimes: ['php@8.4': {extensions: [apcu]}]\n"
        "      packages: [yarn, {package: wkhtmltopdf, channel: unstable}]",
    ),
    "dependencies": app("    dependencies: {python3: {uv: '*'}, nodejs: {n: '*'}}\n"),
    "PHP without a start command": (
        "applications:\n  app:\n    type: php:8.4\n    build: {flavor: composer}\n"
        "    runtime:\n      extensions: [redis, {name: blackfire}]\n"
        "      sizing_hints: {request_memory: 45}\n"
        "    web: {locations: {/: {root: public, passthru: /index.php}}}\n"
    ),
    "static site": BASE.replace("gunicorn -b 127.0.0.1:$PORT app:app", "sleep infinity").replace(
        "passthru: true", "root: public\n          index: [index.html]\n          expires: 1h 30m"
    ),
    "hook without set -e": app("    hooks: {build: \"a\\nb\", deploy: 'x'}\n"),
    "PCRE named group": app("").replace(
        "passthru: true", "passthru: true\n          rules: {'^/(?<a>.*)$': {allow: false}}"
    ),
    "dotted mount": app("    mounts: {.cache: {source: tmp, source_path: cache}}\n"),
    "mounts": app(
        "    mounts:\n      a: {source: storage}\n      /b: {source: instance, source_path: ''}\n"
        "      c: {source: temporary}\n"
    ),
    "network storage": service("  f: {type: 'network-storage:1.0'}\n").replace(
        "services:", "    mounts: {a: {source: service, service: f}}\nservices:"
    ),
    "worker": app(
        "    workers:\n      queue:\n        container_profile: HIGH_MEMORY\n"
        "        commands: {start: celery}\n        relationships: {}\n"
        "        access: {ssh: admin}\n"
        "        variables: {env: {A: b}}\n        mounts: {a: {source: storage}}\n"
        "        additional_hosts: {a: 10.0.0.1}\n        timezone: UTC\n"
    ),
    "operations": app(
        "    source: {root: /, operations: {update: {command: git pull}}}\n"
        "    operations: {clear: {role: admin, commands: {start: x}}}\n"
    ),
    "settings": app(
        "    additional_hosts: {db: 10.0.0.1}\n    timezone: Europe/Paris\n"
        "    access: {ssh: viewer}\n    preflight: {enabled: false}\n"
        "    resources: {base_memory: 64, memory_ratio: 128}\n"
        "    firewall: {outbound: [{ips: [10.0.0.0/8], ports: [443], protocol: tcp}]}\n"
    ),
    "relationship by name": service("  postgresql: {type: 'postgresql:18'}\n", "postgresql: "),
    "relationship with an empty mapping": service("  redis: {type: 'redis:8.0'}\n", "redis: {}"),
    "relationship as a mapping": service(
        "  db: {type: 'mariadb:11.8'}\n", "a: {service: db, endpoint: mysql}"
    ),
    "own endpoints": service(
        "  db:\n    type: postgresql:17\n    configuration:\n      databases: [main]\n"
        "      extensions: [vector]\n      endpoints:\n"
        "        reporter: {default_database: main, privileges: {main: ro}}\n",
        "db: 'db:reporter'",
    ),
    "replica": service(
        "  db:\n    type: postgresql:17\n"
        "    configuration: {endpoints: {replicator: {replication: true}}}\n"
        "  copy: {type: 'postgres-replica:17', relationships: {primary: 'db:replicator'}}\n",
        "r: 'copy:postgresql'",
    ),
    "service with a profile": service(
        "  c: {type: 'valkey-persistent:8.1', container_profile: BALANCED}\n", "c: 'c:valkey'"
    ),
    "several applications": f"{BASE}    relationships: {{api: 'api:http'}}\n{SECOND}{ROUTES}",
    "upstream is a service": (
        f"{BASE}services:\n  m: {{type: 'mercure:0'}}\n{ROUTES}"
        '  "https://m.{default}/": {type: upstream, upstream: "m:http"}\n'
    ),
    "varnish in front": service(
        "  v:\n    type: varnish:9.0\n    relationships: {app: 'app:http'}\n"
        "    configuration: {vcl: !include {type: string, path: config.vcl}}\n"
    ).replace('"app:http"', '"v:http"'),
    "route": route(
        "    id: main\n    primary: true\n    sticky: true\n    attributes: {a: b}\n"
        "    ssi: {enabled: true}\n    tls: {strict_transport_security: {enabled: true}}\n"
        "    cache: {enabled: true, default_ttl: 60, cookies: ['/^a/'], headers: [Accept]}\n"
    ),
    "redirects": route(
        "    redirects:\n      expires: 1d\n      paths:\n"
        "        /a: {to: 'https://{default}/b', code: 301, prefix: false, regexp: true}\n"
        '  "http://www.{default}/": {type: redirect, to: "https://{default}/"}\n'
        '  "https://old.{default}/": {type: proxy, to: "https://example.com/"}\n'
        '  "https://*.{all}/": {type: upstream, upstream: "app:http"}\n'
    ),
    "unknown top-level key": f"{BASE}newsection: {{a: 1}}\n",
    "empty hooks": app("    hooks:\n"),
    "number as a header": app("").replace(
        "passthru: true", "passthru: true\n          headers: {X-Max: 3600}"
    ),
    "upstream without an endpoint": route("").replace("app:http", "app"),
    "stack and type": app("    stack: ['python@3.13']\n"),
    # Older forms that the documentation mentions.
    "shared mount": app("    mounts: {a: {source: shared}}\n"),
    "local mount": app("    mounts: {a: {source: local}}\n"),
    "mount as text": app("    mounts: {a: 'shared:files/a'}\n"),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(tmp_path: Path, text: str) -> None:
    assert errors(check(tmp_path, text)) == []


# The configuration, a part of the reported line, and a part of the message or its fix.
REFUSED: dict[str, tuple[str, str, str]] = {
    "runtime": (app("").replace("python:", "pyton:"), "type: pyton", "did you mean `python`?"),
    "runtime version": (app("").replace("3.13", "3.99"), "type: p", "python 3.99"),
    "runtime with @": (app("").replace("n:3", "n@3"), "type: p", "write `python:3.13`"),
    "missing type": (app("").replace("    type: python:3.13\n", ""), "  app:", "no `type`"),
    "number as type": (app("").replace("python:3.13", "3.13"), "type: 3", "must be text"),
    "web": (app("").replace("commands:", "comands:"), "comands", "did you mean `commands`?"),
    "location": (app("").replace("passthru", "pasthru"), "pasthru", "`passthru`"),
    "application": (app("    relationship: {}\n"), "relationship:", "`relationships`"),
    "disk": (app("    disk: 256\n"), "disk", "upsun resources:set"),
    "size": (app("    size: S\n"), "size", "upsun resources:set"),
    "name": (app("    name: app\n"), "name", "unknown key"),
    "routes in the application": (app("    routes: {}\n"), "routes: {}", "top level"),
    "profile": (app("    container_profile: HUGE\n"), "profile", "HIGH_CPU"),
    "access": (app("    access: {ssh: 5}\n"), "access", "viewer"),
    "hosts": (app("    additional_hosts: [a]\n"), "additional_hosts", "a mapping"),
    "firewall": (app("    firewall: yes please\n"), "firewall", "a mapping"),
    "runtime settings": (app("    runtime: 5\n"), "runtime", "a mapping"),
    "time zone": (app("    timezone: Mars/Olympus\n"), "timezone", "not a time zone"),
    "hook": (app("    hooks: {biuld: x}\n"), "hooks", "did you mean `build`?"),
    "hook as a list": (app("    hooks: {build: [x]}\n"), "hooks", "must be text"),
    "worker": (
        app("    workers: {q: {comands: {start: x}}}\n"),
        "workers",
        "did you mean `commands`?",
    ),
    "worker without a command": (
        app("    workers:\n      q: {commands: {}}\n"),
        "q:",
        "no `start`",
    ),
    "mount": (app("    mounts: {a: {source: nope}}\n"), "mounts", "storage"),
    "mount as text": (app("    mounts: {a: 'storage/a'}\n"), "mounts", "a mapping"),
    "mount of a worker": (
        app("    workers: {q: {commands: {start: x}, mounts: {a: {source: nope}}}}\n"),
        "workers",
        "storage",
    ),
    "missing service of a mount": (
        app("    mounts: {a: {source: service, service: f}}\n"),
        "mounts",
        "`f`",
    ),
    "cron": (
        app("    crons:\n      a: {spec: '0 3 * * *', shutdown_timout: 5, commands: {start: x}}\n"),
        "a:",
        "`shutdown_timeout`",
    ),
    "cron without a schedule": (
        app("    crons:\n      a: {commands: {start: x}}\n"),
        "a:",
        "no `spec`",
    ),
    "cron without a command": (
        app("    crons:\n      a: {spec: '0 3 * * *'}\n"),
        "a:",
        "no `commands`",
    ),
    "cron schedule": (
        app("    crons:\n      a: {spec: '0 25 * * *', commands: {start: x}}\n"),
        "a:",
        "hour",
    ),
    "cron timeout": (
        app("    crons:\n      a: {spec: 'H * * * *', timeout: 100000, commands: {start: x}}\n"),
        "a:",
        "86400",
    ),
    "operation": (
        app("    operations: {clear: {rol: admin, commands: {start: x}}}\n"),
        "clear",
        "`role`",
    ),
    "source operation": (
        app("    source: {operations: {update: {comand: git pull}}}\n"),
        "update",
        "`command`",
    ),
    "dependencies": (app("    dependencies: [uv]\n"), "dependencies", "a mapping"),
    "application name": (
        BASE.replace("  app:", "  my app:") + ROUTES.replace("app:", "my app:"),
        "my app:",
        "name",
    ),
    "duplicate application": (f"{BASE}  app: {{type: 'nodejs:24'}}\n", "nodejs", "twice"),
    "duplicate key": (app("    hooks: {}\n    hooks: {}\n"), "hooks", "twice"),
    "no application": ("services: {}\n", "services", "no `applications`"),
    "list of applications": ("applications:\n  - type: python:3.13\n", "applications", "mapping"),
    "service": (
        service("  db: {type: 'postgressql:18'}\n"),
        "postgressql",
        "did you mean `postgresql`?",
    ),
    "service version": (service("  db: {type: 'mariadb:99'}\n"), "mariadb:99", "mariadb 99"),
    "removed version": (service("  db: {type: 'redis:4.0'}\n"), "redis:4.0", "was removed"),
    "service without a version": (service("  db: {type: redis}\n"), "redis", "no version"),
    "service without a type": (service("  db: {}\n"), "db", "no `type`"),
    "runtime as a service": (service("  db: {type: 'python:3.13'}\n"), "db", "not a service"),
    "service key": (
        service("  db: {type: 'postgresql:18', configuraton: {}}\n"),
        "db",
        "`configuration`",
    ),
    "disk of a service": (service("  db: {type: 'redis:8.0', disk: 256}\n"), "db", "resources:set"),
    "same name": (service("  app: {type: 'redis:8.0'}\n"), "redis", "same name"),
    "relationship": (app("    relationships: {db: 'db:postgresql'}\n"), "relationships", "`db`"),
    "endpoint": (
        service("  db: {type: 'postgresql:18'}\n", "db: 'db:postgrsql'"),
        "relationships",
        "did you mean `postgresql`?",
    ),
    "own endpoint": (
        service(
            "  db: {type: 'mariadb:11.8', configuration: {endpoints: {a: {}}}}\n", "db: 'db:mysql'"
        ),
        "relationships",
        "`mysql`",
    ),
    "endpoint of an application": (
        f"{BASE}    relationships: {{api: 'api:htp'}}\n{SECOND}",
        "relationships",
        "`htp`",
    ),
    "relationship of a worker": (
        app(
            "    workers:\n      q:\n        commands: {start: x}\n"
            "        relationships: {db: 'nope:mysql'}\n"
        ),
        "relationships",
        "`nope`",
    ),
    "relationship of a service": (
        service("  v: {type: 'varnish:9.0', relationships: {a: 'nope:http'}}\n"),
        "v:",
        "`nope`",
    ),
    "route": (route("    chache: {enabled: true}\n"), "chache", "did you mean `cache`?"),
    "URL": (route("").replace("https://{default}/", "example"), "example", "URL"),
    "upstream": (route("").replace("app:http", "ap:http"), "upstream:", "did you mean `app`?"),
    "endpoint of an upstream": (route("").replace("app:http", "app:htp"), "upstream:", "`htp`"),
    "route type": (route("").replace("type: upstream", "type: upstrem"), "upstrem", "`upstream`"),
    "route without an upstream": (
        route("").replace('    upstream: "app:http"\n', ""),
        "https",
        "no `upstream`",
    ),
    "redirect without a target": (
        route('  "https://www.{default}/": {type: redirect}\n'),
        "www",
        "no `to`",
    ),
    "cache": (route("    cache: {enabled: maybe}\n"), "cache", "true or false"),
    "two primary routes": (
        route(
            "    primary: true\n"
            '  "https://b.{default}/": {type: upstream, upstream: "app:http", primary: true}\n'
        ),
        "https://b",
        "primary",
    ),
    "circle of two applications": (
        app("    relationships: {api: 'api:http'}\n").replace(
            "routes:\n", f"{SECOND}    relationships: {{back: 'app:http'}}\nroutes:\n"
        ),
        "back",
        "api → app → api",
    ),
    "circle over a service": (
        service(
            "  v: {type: 'varnish:9.0', relationships: {app: 'app:http'}}\n", "cache: 'v:http'"
        ),
        "varnish",
        "v → app → v",
    ),
    "TLS version": (route("    tls: {min_version: TLSv1.4}\n"), "tls", "TLSv1.3"),
}


@pytest.mark.parametrize(("text", "place", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, text: str, place: str, words: str) -> None:
    findings = [f for f in check(tmp_path, text) if f.severity is Severity.ERROR]
    lines = text.splitlines()
    assert [
        f for f in findings if words in f"{f.message} {f.fix}" and place in lines[f.line - 1]
    ], findings
    for finding in findings:
        assert finding.file == "config.yaml"
        assert finding.consequence
        assert finding.fix


@pytest.mark.parametrize("mount", ["{source: local, source_path: a}", "'shared:files/a'"])
def test_older_form_of_a_mount_is_a_warning(tmp_path: Path, mount: str) -> None:
    text = app(f"    mounts:\n      a: {mount}\n")
    (finding,) = [f for f in check(tmp_path, text) if "older form" in f.message]
    assert finding.severity is Severity.WARNING
    assert finding.fix
    assert mount in text.splitlines()[finding.line - 1]


def test_findings_after_the_first_error_are_reported(tmp_path: Path) -> None:
    text = app("    size: S\n    hooks: {deploy: 'set -x'}\n").replace("python:3.13", "python:3.9")
    messages = " ".join(finding.message for finding in check(tmp_path, text))
    assert "size is an unknown key" in messages
    assert "retired" in messages
    assert "set -x" in messages


def test_old_tables_make_unknown_versions_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = app("").replace("python:3.13", "python:3.99")
    assert errors(check(tmp_path, text))
    monkeypatch.setattr(knowledge, "AS_OF", date(2020, 1, 1))
    found = check(tmp_path, text)
    assert errors(found) == []
    assert any("python 3.99" in f.message and "January 2020" in f.consequence for f in found)
    assert any(f.severity is Severity.NOTE and "January 2020" in f.message for f in found)


def test_unknown_top_level_key_is_a_dated_warning(tmp_path: Path) -> None:
    (finding,) = [
        f for f in check(tmp_path, f"{BASE}route: {{}}\n") if f.message.startswith("route ")
    ]
    assert finding.severity is Severity.WARNING
    assert finding.message == "route is an unknown key"
    assert f"{knowledge.AS_OF:%B %Y}" in finding.consequence
    assert finding.fix == "did you mean `routes`?"
