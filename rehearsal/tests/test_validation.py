"""The validation finds mistakes in configurations, and none in a correct one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rehearsal.checks import shell
from rehearsal.checks.crons import SpecError, interval
from rehearsal.configuration import CONFIG_FILE
from rehearsal.findings import Finding, Severity
from rehearsal.validation import validate

# Upsun's JSON schema, which is not part of the repository; tests that use it are optional.
SCHEMA = Path(__file__).resolve().parents[3] / "shared" / "upsun" / "config.schema.json"
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

# A correct configuration, which the cases below break.
SMALL = """\
applications:
  app:
    type: python:3.13
    container_profile: BALANCED
    relationships:
      postgresql: "db:postgresql"
    mounts:
      "data":
        source: storage
        source_path: data
    web:
      upstream:
        socket_family: tcp
      commands:
        start: exec gunicorn --bind 127.0.0.1:$PORT wsgi
      locations:
        "/":
          passthru: true
        "/files":
          root: public
          rules:
            '\\.css$': {expires: 1h}
    workers:
      mail:
        commands:
          start: exec python -m mail
    crons:
      clean:
        spec: "H * * * *"
        commands:
          start: python -m clean
    hooks:
      build: |
        set -eu
        pip install --require-hashes -r requirements.txt
        npm run build -- --outdir=build
      deploy: |
        set -eu
        alembic upgrade head
        echo done
services:
  db:
    type: postgresql:18
routes:
  "https://{default}/":
    type: upstream
    upstream: "app:http"
  "https://www.{default}/":
    type: redirect
    to: "https://{default}/"
"""
FILES = {
    "wsgi.py": "",
    "public/main.css": "",
    "data/.gitkeep": "",  # hidden by the mount, which does not matter
    "requirements.txt": "--no-binary :all:\na==1 \\\n    --hash=sha256:00\n",
    ".environment": "export A=1\n",
}


def findings(
    directory: Path, text: str, files: dict[str, str] | None = None, schema: Path | None = None
) -> list[Finding]:
    content = {CONFIG_FILE: text, **FILES, **(files or {})}
    for name, value in content.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(value)
    return validate(directory, files=list(content), schema=schema).findings


def line_with(text: str, part: str) -> int:
    """Return the number of the only line that contains `part`, counted from 1."""
    (number,) = [n for n, line in enumerate(text.splitlines(), 1) if part in line]
    return number


@pytest.mark.requires("dash")
def test_sample_configuration_has_no_finding(tmp_path: Path) -> None:
    assert findings(tmp_path, SMALL, schema=SCHEMA if SCHEMA.exists() else None) == []


# Old text, new text, a part of the reported line, severity, a part of the message.
BROKEN: list[tuple[str, str, str, Severity, str]] = [
    # versions
    ("python:3.13", "python:3.12", "type: python", WARNING, "python 3.12, which is deprecated"),
    ("python:3.13", "python:3.9", "type: python", WARNING, "python 3.9, which is retired"),
    ("python:3.13", "python:3.99", "type: python", ERROR, "python 3.99"),
    ("python:3.13", "pyton:3.13", "type: pyton", ERROR, "`pyton` is unknown"),
    ("python:3.13", "postgresql:18", "type: postgresql:18", ERROR, "not a runtime"),
    ("python:3.13", "golang:1.9", "type: golang", ERROR, "which was removed"),
    ("python:3.13", "python", "type: python", ERROR, "no version for python"),
    ("    type: python:3.13\n", "", "  app:", ERROR, "no `type`"),
    ("    container_profile: BALANCED\n", "", "  app:", WARNING, "no `container_profile`"),
    ("postgresql:18", "postgresql:19", "postgresql:19", ERROR, "postgresql 19"),
    ("postgresql:18", "postgresql:13", "postgresql:13", WARNING, "retired"),
    ("postgresql:18", "postgresql", "type: postgresql", ERROR, "no version for postgresql"),
    ("postgresql:18", "valkey:7.2", "valkey:7.2", ERROR, "valkey 7.2"),
    ("postgresql:18", "redis-persistent:7.0", "redis-p", WARNING, "redis-persistent 7.0"),
    # wiring
    ('"db:postgresql"', '"base:postgresql"', '"base:', ERROR, "`base`"),
    ('"db:postgresql"', '"base:postgresql"', "  db:", WARNING, "not used"),
    ('"db:postgresql"', '"db"', '"db"', WARNING, "no endpoint"),
    ('"db:postgresql"', '"db:mysql"', '"db:mysql"', ERROR, "`mysql`"),
    ('postgresql: "db', 'database: "db', 'database: "db', WARNING, "DATABASE_URL"),
    ('"app:http"', '"web:http"', '"web:http"', ERROR, "`web`"),
    ('    upstream: "app:http"\n', "", '"https://{default}/":', ERROR, "no `upstream`"),
    ('to: "https://{d', 'to: "https://a.{d', "to:", WARNING, "not a route"),
    ('to: "https://{default}/"', "to: https://a.example", "to:", WARNING, "outside"),
    ('    to: "https://{default}/"\n', "", '"https://www', ERROR, "no `to`"),
    # mounts
    ('"data":', '".data":', '".data":', WARNING, "starts with a dot"),
    ("        source_path: data\n", "", '"data":', WARNING, "no `source_path`"),
    ("source: storage", "source: service", '"data":', ERROR, "no `service`"),
    ("source: storage", "source: service\n        service: x", '"data":', ERROR, "`x`"),
    ('"data":', '"public":', '"public":', WARNING, "hides public/main.css"),
    ('"data":', '"/":', '"/":', WARNING, "hides"),
    ("    web:\n", "      /data/: {source: tmp}\n    web:\n", "/data/", WARNING, "same directory"),
    (
        "    web:\n",
        "      data/a: {source: tmp}\n    web:\n",
        "data/a",
        WARNING,
        "inside the mount",
    ),
    ("--outdir=build", "--outdir=data", "--outdir", WARNING, "writes to data"),
    ("--outdir=build", "--out data/js", "--out ", WARNING, "writes to data"),
    ("--outdir=build", "> ./data/log", "data/log", WARNING, "writes to data"),
    ("--outdir=build", "/app/data", "/app/data", WARNING, "mentions data"),
    # hooks and commands
    ("set -eu\n        pip", "pip", "build: |", WARNING, "`pip` (line 1"),
    ("set -eu\n        al", "al", "deploy: |", WARNING, "without `set -e`"),
    ("set -eu\n        al", "if a; then b; fi\n        al", "deploy: |", WARNING, "`b` (line 1"),
    ("set -eu\n        al", "set -eux\n        al", "set -eux", WARNING, "`set -x`"),
    ("set -eu\n        al", "set -eu -o xtrace\n        al", "xtrace", WARNING, "`set -x`"),
    ("alembic upgrade", "source .env; alembic", "source .env", WARNING, "`source`"),
    ("alembic upgrade", "set -eo pipefail; x", "pipefail", WARNING, "`set -o pipefail`"),
    ("exec gunicorn", "cd x && gunicorn", "start: cd", WARNING, "`gunicorn`"),
    ("python -m clean", "python -m clean &", "clean &", WARNING, "background"),
    ("exec python -m mail", "celery worker -D", "celery", WARNING, "option -D"),
    # serving
    ("127.0.0.1:$PORT wsgi", "127.0.0.1:$PORT wsgi &", "wsgi &", WARNING, "`&`"),
    ("exec gunicorn", "exec gunicorn --daemon", "--daemon", WARNING, "option --daemon"),
    ("exec gunicorn", "exec nohup gunicorn", "nohup", WARNING, "`nohup`"),
    ("127.0.0.1:$PORT", "0.0.0.0:5000", "start: exec g", WARNING, "(0.0.0.0:5000)"),
    ("--bind 127.0.0.1:$PORT", "-p 8888", "start: exec g", WARNING, "(8888)"),
    ("--bind 127.0.0.1:$PORT", "-b :8000", "start: exec g", WARNING, "(:8000)"),
    ("--bind 127.0.0.1:$PORT", "--port=80", "start: exec g", WARNING, "(80)"),
    ("127.0.0.1:$PORT", "unix:$SOCKET", "start: exec g", WARNING, "family is tcp"),
    ("family: tcp", "family: unix", "start: exec g", WARNING, "family is unix"),
    ("gunicorn --bind 127.0.0.1:$PORT wsgi", "flask run", "flask", WARNING, "development server"),
    (
        "        start: exec gunicorn",
        "        stop: exec gunicorn",
        '"/":',
        WARNING,
        "no start command",
    ),
    ("passthru: true", "passthru: false", "locations:", WARNING, "not pass any request"),
    ("start: exec python -m mail", "stop: a", "commands:", ERROR, "no `start`"),
    ("root: public", "root: dist", "root: dist", WARNING, "is dist"),
    ("root: public", 'root: ""', 'root: ""', WARNING, "root directory"),
    ("root: public", "root: /", "root: /", WARNING, "root directory"),
    ("'\\.css$'", "'(css$'", "'(css$'", WARNING, "regular expression"),
    # crons
    ("H * * * *", "*/2 * * * *", "spec:", WARNING, "2 min apart"),
    ("H * * * *", "* * * * *", "spec:", WARNING, "1 min apart"),
    ("H * * * *", "0 25 * * *", "spec:", ERROR, "the hour '25'"),
    ("H * * * *", "hourly", "spec:", ERROR, "expected 5 fields"),
]


@pytest.mark.requires("dash")
@pytest.mark.parametrize(("old", "new", "place", "severity", "words"), BROKEN)
def test_broken_configuration_is_found(
    tmp_path: Path, old: str, new: str, place: str, severity: Severity, words: str
) -> None:
    assert SMALL.count(old) >= 1
    text = SMALL.replace(old, new, 1)
    if "dist" in new:  # npm might create it
        text = text.replace("npm run build", "cp").replace("--outdir=build", "a b")
    found = [f for f in findings(tmp_path, text) if words in f.message and f.severity is severity]
    assert found, findings(tmp_path, text)
    finding = found[0]
    assert finding.stage == "validate"
    assert finding.consequence
    assert finding.fix
    assert finding.file == CONFIG_FILE
    if place:
        assert place in text.splitlines()[finding.line - 1], finding


# Old text and new text: variants that are correct.
RIGHT: list[tuple[str, str]] = [
    ('"db:postgresql"', "{service: db, endpoint: postgresql}"),
    ('postgresql: "db:postgresql"', "db:"),
    ("H * * * *", "H/5 * * * *"),
    ("H * * * *", "H H(0-3) * * mon-fri"),
    ("H * * * *", "*/15 8-18/2 1,15 jan-jun 0"),
    ("set -eu\n        alembic upgrade head\n        echo done", "a && b"),
    ("set -eu\n        alembic upgrade head\n        echo done", "a &&\n          b"),
    ("set -eu\n        alembic upgrade head\n        echo done", "a \\\n          b"),
    ("set -eu\n        alembic upgrade head\n        echo done", "export A=1\n        a"),
    (
        "set -eu\n        alembic upgrade head\n        echo done",
        "a || exit 1\n        b || exit 1",
    ),
    ("set -eu\n        al", "# On the platform.\n        set -o errexit\n        al"),
    ("--outdir=build", "--outdir=database"),
    ("--outdir=build", "# data is a mount"),
    ("exec gunicorn", "cd wsgi && exec gunicorn"),
    ("exec gunicorn", "A=1 gunicorn"),
    ("exec gunicorn", "trap stop TERM; gunicorn"),
    ("127.0.0.1:$PORT", "127.0.0.1:${PORT} -b 127.0.0.1:9000"),
    ("--bind 127.0.0.1:$PORT", "-w 4"),
    ('        "/files":\n          root: public', '        "/files":\n          root: build'),
    ("root: public", 'root: ""\n          allow: false'),
    ("root: public", "root: data/public"),
    ('upstream: "app:http"', 'upstream: "app:http"\n    cache: {enabled: false}'),
    ('"https://{default}/":', '"https://example.com/":'),
    (SMALL[SMALL.index("routes:") :], "routes:\n"),
]


@pytest.mark.requires("dash")
@pytest.mark.parametrize(("old", "new"), RIGHT)
def test_correct_configuration_has_no_finding(tmp_path: Path, old: str, new: str) -> None:
    assert SMALL.count(old) >= 1
    text = SMALL.replace(old, new, 1)
    if "root" in old:  # npm might create any directory
        text = text.replace("npm run build -- --outdir=", "cp -r css ")
    if "example.com" in new:
        text = text.replace('to: "https://{default}/"', "to: https://example.com/")
    found = findings(tmp_path, text, schema=SCHEMA if SCHEMA.exists() else None)
    assert [finding.message for finding in found] == []


def test_service_may_be_used_by_a_mount_only(tmp_path: Path) -> None:
    text = SMALL.replace("source: storage", "source: service\n        service: files")
    text = text.replace("services:\n", "services:\n  files:\n    type: network-storage:1.0\n")
    assert findings(tmp_path, text) == []


def test_unix_socket_requires_its_socket_family(tmp_path: Path) -> None:
    text = SMALL.replace("family: tcp", "family: unix").replace("127.0.0.1:$PORT", "unix:$SOCKET")
    assert findings(tmp_path, text) == []


@pytest.mark.requires("dash")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("alembic upgrade head", "alembic upgrade head; fi"),
        ("--outdir=build", "--outdir=build )"),
        ("exec gunicorn", "exec (gunicorn"),
        ("python -m clean", "python -m clean )"),
        ("exec python -m mail", "exec python -m mail | ;"),
    ],
)
def test_syntax_error_is_reported_with_its_line(tmp_path: Path, old: str, new: str) -> None:
    text = SMALL.replace(old, new, 1)
    (finding,) = [f for f in findings(tmp_path, text) if "syntax error" in f.message]
    assert finding.line == line_with(text, new)
    assert finding.severity is ERROR


def test_missing_dash_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = findings(tmp_path, SMALL)
    assert "dash is not installed" in finding.message
    assert finding.severity is NOTE


@pytest.mark.requires("dash")
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("A=1\nexport PORT=8888\n", 2, "sets PORT"),
        ("SOCKET=/tmp/a\n", 1, "sets SOCKET"),
        ("if true; then\n  export A=1 PLATFORM_BRANCH=x\nfi\n", 2, "sets PLATFORM_BRANCH"),
        ('\n: "${PORT:=8000}"\n', 2, "sets PORT"),
        ("A=1\nif true; then\n", 3, "syntax error"),
    ],
)
def test_environment_file_is_checked(tmp_path: Path, text: str, line: int, words: str) -> None:
    (finding,) = findings(tmp_path, SMALL, {".environment": text})
    assert words in finding.message
    severity = ERROR if "syntax" in words else WARNING
    assert (finding.place, finding.severity) == (f".environment:{line}", severity)


def test_environment_file_may_use_reserved_variables(tmp_path: Path) -> None:
    text = 'export A="$PORT" PORT="${PORT:-8000}"\nPORT=1 true\n# PORT=1\nB=\'\nPORT=1\n\'\n'
    assert findings(tmp_path, SMALL, {".environment": text}) == []


def test_requirements_without_hash_are_found(tmp_path: Path) -> None:
    text = "# PyPI\na==1 \\\n    --hash=sha256:00\nb[x]==2  # why\nc>3 ; python_version > '3'\n"
    (finding,) = findings(tmp_path, SMALL, {"requirements.txt": text})
    assert "b and 1 more" in finding.message
    assert (finding.place, finding.severity) == ("requirements.txt:4", WARNING)
    without = SMALL.replace("--require-hashes ", "")
    assert findings(tmp_path, without, {"requirements.txt": text}) == []


@pytest.mark.parametrize(
    ("file", "severity"),
    [
        (".platform.app.yaml", WARNING),
        ("back/.platform.app.yaml", WARNING),
        (".platform/routes.yaml", WARNING),
        (".upsun/more.yml", WARNING),
    ],
)
def test_other_configuration_files_are_reported(
    tmp_path: Path, file: str, severity: Severity
) -> None:
    (finding,) = findings(tmp_path, SMALL, {file: "{}"})
    assert (finding.file, finding.severity) == (file, severity)


def test_paths_are_relative_to_the_application(tmp_path: Path) -> None:
    """The second of two applications is in its own directory, with other tracked files."""
    second = SMALL[SMALL.index("  app:") : SMALL.index("services:")].replace("  app:", "  two:", 1)
    second = second.replace("    web:\n", "    source: {root: /two}\n    web:\n", 1)
    second = second.replace('"data":', '"static":').replace("--outdir=build", "--outdir=data")
    second = second.replace("    mounts:\n", "    mounts:\n      data/a: {source: tmp}\n", 1)
    text = SMALL.replace("services:", f"{second}services:", 1)
    files = {
        "two/static/a.css": "",
        "two/public/a.css": "",
        "two/.environment": "PORT=1",
        "data.txt": "",
        "static/a.css": "",
    }
    found = findings(tmp_path, text, files)
    assert [f.message.partition(" ")[0] for f in found] == [
        "applications.two.mounts.static",
        "two/.environment",
    ]
    assert "hides two/static/a.css" in found[0].message


# Schema errors

WRONG: list[tuple[str, str, str, str]] = [
    ("source: storage", "source: nope", "source: nope", "`nope`"),
    ("    web:\n", "    webb: {}\n    web:\n", "webb", "webb is an unknown key"),
    ("  db:\n", "  db: x\n  other:\n", "  db: x", "services.db"),
    ("type: redirect", "type: redirct", "type: redirct", "type"),
    ("container_profile: BALANCED", "type: [", "", "invalid YAML"),
]


@pytest.mark.parametrize("with_schema", [False, True])
@pytest.mark.parametrize(("old", "new", "place", "words"), WRONG)
def test_schema_error_is_reported_once(
    tmp_path: Path, old: str, new: str, place: str, words: str, with_schema: bool
) -> None:
    if with_schema and not SCHEMA.exists():
        pytest.skip("Upsun's JSON schema is not available")
    text = SMALL.replace(old, new, 1)
    found = findings(tmp_path, text, schema=SCHEMA if with_schema else None)
    (finding,) = [f for f in found if not place or f.line == line_with(text, place)]
    assert words in finding.message
    assert finding.severity is ERROR
    assert finding.consequence
    assert finding.fix


def test_json_schema_finds_more_than_the_models(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    service = {"properties": {"type": {}}, "additionalProperties": False}
    services = {"additionalProperties": {"oneOf": [service]}}
    schema.write_text(json.dumps({"properties": {"services": services}}))
    text = SMALL.replace("  db:\n", "  db:\n    size: L\n", 1)
    (finding,) = findings(tmp_path, text, schema=schema)
    assert finding.message == "services.db.size (unknown key)"
    assert finding.line == line_with(text, "size: L")


def test_unreadable_schema_is_a_note(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, SMALL, schema=tmp_path / "none.json")
    assert finding.severity is NOTE


def test_missing_configuration_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".platform.app.yaml").write_text("")
    found = validate(tmp_path, files=[".platform.app.yaml"]).findings
    assert [finding.severity for finding in found] == [ERROR, WARNING]
    assert found[0].message == ".upsun/config.yaml is not in the commit"
    assert found[0].consequence


# Unexpected input

ODD: list[Any] = [None, {}, [], "", "x: y", 0, [None, 1], {3: None}]


def replaced(value: Any, odd: Any) -> Iterator[Any]:
    """Yield copies of a value, each with one part replaced or added."""
    yield odd
    if isinstance(value, dict):
        yield {**value, "odd": odd}
        yield {**value, 3: odd}
        for key, part in value.items():
            for other in replaced(part, odd):
                yield {**value, key: other}


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_unexpected_values_never_raise(
    tmp_path: Path, odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without dash, to be faster
    schema = SCHEMA if SCHEMA.exists() else None
    for changed in replaced(yaml.safe_load(SMALL), odd):
        found = findings(tmp_path, yaml.safe_dump(changed), schema=schema)
        assert all(finding.stage == "validate" for finding in found)


UNFINISHED = [
    "case",
    "case x in",
    "for",
    "if",
    ")",
    "}",
    "fi",
    ";;",
    "( (",
    "f()",
    "|| ||",
    "do done esac",
]


@pytest.mark.parametrize(
    "text",
    [
        *UNFINISHED,
        "'",
        '"',
        "`",
        "$(",
        "${",
        "$((",
        "\\",
        "a >",
        "<<",
        "<<E",
        "a <<'E'\n'",
        "#",
        "!",
        "&",
        "&&",
    ],
)
def test_incomplete_commands_never_raise(tmp_path: Path, text: str) -> None:
    changed = yaml.safe_load(SMALL)
    application = changed["applications"]["app"]
    application["hooks"] = {"build": text, "deploy": f"a\n{text}\nb"}
    application["web"]["commands"]["start"] = text
    application["crons"]["clean"]["spec"] = text
    findings(tmp_path, yaml.safe_dump(changed), {".environment": text})


# Shell parser


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("a", None),
        ("a\nb", "a"),
        ("a; b", "a"),
        ("a && b\nc", "a"),
        ("a\nset -e\nb", "a"),
        ("set -e\nset +e\na\nb", "a"),
        ("echo a\nb", None),
        ("a\necho b", "a"),
        ("a || b\nc", None),
        ("a &\nb", None),
        ("if a; then b; fi", None),
        ("if a\nthen\n b\n c\nfi", "b"),
        ("if a; then b; else c; fi\nd", "b"),
        ("if a; then exit 1; fi\nd", None),
        ("while a; do b; done", None),
        ("for x in 1 2; do a; b; done", "a"),
        ("case $x in a|b) c ;; *) d; e ;; esac", "d"),
        ("case $x in\n  (a) b ;;\nesac", None),
        ("(a; b)", "a"),
        ("{ a; b; }", "a"),
        ("f() { a; }\nf", None),
        ("f() {\n a\n b\n}\nset -e\nf", "a"),
        ("cat <<E\na\nb\nE", None),
        ("a '\nb\n'", None),
        ('a "$(b; c "d")"', None),
        ("a # b\n", None),
        ("a | b\nc", "a"),
        ("! a\nb", "a"),
    ],
)
def test_ignored_failures(text: str, lost: str | None) -> None:
    found = shell.read(text).lost
    assert (found.words[0] if found else None) == lost


def test_shell_parser_returns_words_and_lines() -> None:
    script = shell.read("A=1 exec a 'b c' \"$D\" >e 2>&1 &\n\nif x; then\n  y \\\n z; fi")
    assert [(c.words, c.line, c.end, c.depth) for c in script.commands] == [
        (("A=1", "exec", "a", "b c", "$D"), 1, "&", 0),
        (("x",), 3, ";", 1),
        (("y", "z"), 4, ";", 1),
    ]
    assert script.commands[0].program == ("a", "b c", "$D")
    assert script.commands[0].files == ("e", "1")


@pytest.mark.parametrize(
    ("spec", "minutes"),
    [
        ("* * * * *", 1),
        ("*/5 * * * *", 5),
        ("*/7 * * * *", 4),
        ("0,2 * * * *", 2),
        ("0,58 * * * *", 2),
        ("0,58 3 * * *", 58),
        ("0,58 23,0 * * *", 2),
        ("10-12 * * * *", 1),
        ("H/3 * * * *", 3),
        ("H * * * *", 60),
        ("5 4 * * sun", 60),
    ],
)
def test_cron_interval(spec: str, minutes: int) -> None:
    assert interval(spec) == minutes


@pytest.mark.parametrize(
    "spec", ["", "* * * *", "60 * * * *", "*/0 * * * *", "5-1 * * * *", "a * * * *", "1 1 0 1 1"]
)
def test_invalid_cron_specification(spec: str) -> None:
    with pytest.raises(SpecError):
        interval(spec)
