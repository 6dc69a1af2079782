"""Reading the YAML files in `.upsun/`: the models, the places of keys, tags, and messages."""

from pathlib import Path

import pytest

from rehearsal.configuration import (
    CONFIG_FILE,
    ConfigurationError,
    Loaded,
    interpret,
    load,
    parse,
    read,
)
from rehearsal.findings import Place, Severity

SMALL = """\
applications:
  app:
    type: python:3.13
    source: {root: /backend/}
    relationships:
      one: "db:postgresql"
      two: {service: db, endpoint: other}
      db:
    crons:
      clean: {spec: "H * * * *", commands: {start: clean}}
services:
  db:
    type: postgresql:18
"""


def project(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def loaded(directory: Path, text: str) -> Loaded:
    return load(project(directory, {CONFIG_FILE: text}))


def test_place_of_a_key() -> None:
    lines = SMALL.splitlines()
    configuration = parse(SMALL)
    for keys in [
        ("applications", "app", "relationships", "two"),
        ("applications", "app", "crons", "clean"),
        ("services", "db"),
    ]:
        place = configuration.place(*keys)
        assert place.file == CONFIG_FILE
        assert keys[-1] in lines[place.line - 1]
    # A missing key has the place of its nearest ancestor.
    missing = ("services", "db", "size", "large")
    assert configuration.place(*missing) == configuration.place("services", "db")
    assert configuration.place("nothing") == Place(CONFIG_FILE, 1)


def test_relationships_have_three_notations() -> None:
    application = parse(SMALL).applications["app"]
    assert application.directory == "backend"
    assert application.endpoints() == {
        "one": ("db", "postgresql"),
        "two": ("db", "other"),
        "db": ("db", ""),
    }


def test_service_type_and_version() -> None:
    service = parse(SMALL).services["db"]
    assert (service.kind, service.version) == ("postgresql", "18")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("- a\n", 1, "must be a mapping"),
        ("applications:\n  app:\n    web: [\n", 4, "invalid YAML"),
        ("applications:\n  app: \t{\n", 2, "invalid YAML"),
        ("date: 2024-13-45\n", 0, "invalid YAML"),
        ("a: &a\n  b: *a\n", 0, "contains it"),
        ("a: !unknown b\n", 1, "!unknown"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "`c` is defined twice, the first time in line 3"),
    ],
)
def test_unreadable_file_has_a_message_and_a_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    found = loaded(tmp_path, text).findings
    assert [finding.line for finding in found if words in finding.message] == [line], found
    with pytest.raises(ConfigurationError):
        read(tmp_path)


def test_merge_keys_are_not_duplicates(tmp_path: Path) -> None:
    text = (
        "x-base: &base\n  type: python:3.13\n"
        "applications:\n  a: {<<: *base}\n  b:\n    <<: *base\n    type: nodejs:24\n"
    )
    found = loaded(tmp_path, text)
    assert found.findings == []
    configuration = interpret(found)
    assert [a.type for a in configuration.applications.values()] == ["python:3.13", "nodejs:24"]
    assert configuration.place("applications", "b", "type").line == 7
    assert configuration.place("applications", "a", "type").line == 2


def test_parts_that_do_not_fit_are_left_out() -> None:
    text = SMALL.replace("type: postgresql:18", "type: [x]").replace("{start: clean}", "7")
    configuration = parse(text)
    assert configuration.services == {}
    assert configuration.applications["app"].crons == {}
    assert configuration.applications["app"].type == "python:3.13"
    assert configuration.names("services") == {"db"}


def test_old_form_of_a_cron() -> None:
    configuration = parse(SMALL.replace("commands: {start: clean}", "cmd: clean"))
    assert configuration.applications["app"].crons["clean"].commands.start == "clean"


@pytest.mark.parametrize("text", ["", "applications: {}\n", "services: {db: {type: redis:8.0}}\n"])
def test_configuration_without_application_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no application"):
        parse(text)


def test_missing_or_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not in the commit"):
        read(tmp_path)
    file = tmp_path / CONFIG_FILE
    file.parent.mkdir()
    file.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(tmp_path)


def test_several_files_are_merged(tmp_path: Path) -> None:
    application, services = SMALL.split("services:")
    found = load(
        project(
            tmp_path,
            {
                ".upsun/app.yaml": application,
                ".upsun/services.yaml": f"services:{services}",
                ".upsun/routes.yaml": "# nothing\n",
                ".upsun/readme.md": "not YAML: [",
            },
        )
    )
    assert found.findings == []
    configuration = interpret(found)
    assert configuration.services["db"].kind == "postgresql"
    assert configuration.place("services", "db") == Place(".upsun/services.yaml", 2)


def test_name_in_two_files_is_an_error(tmp_path: Path) -> None:
    files = {".upsun/a.yaml": SMALL, ".upsun/b.yaml": "services:\n  db:\n    type: redis:8.0\n"}
    (finding,) = load(project(tmp_path, files)).findings
    assert finding.message == "services.db is defined in several files"
    assert (finding.severity, finding.place) == (Severity.ERROR, ".upsun/b.yaml:2")


def test_included_files_are_read(tmp_path: Path) -> None:
    files = {
        CONFIG_FILE: (
            "applications:\n  app: !include ./apps/app.yaml\n"
            "services:\n  v:\n    type: varnish:9.0\n    configuration:\n"
            "      vcl: !include {type: string, path: config.vcl}\n"
            "      logo: !include {type: binary, path: config.vcl}\n"
            "      directory: !archive files\n"
        ),
        ".upsun/apps/app.yaml": (
            "type: python:3.13\nsource: {root: backend}\nhooks:\n"
            "  build: !include {type: string, path: build.sh}\n"
            "  deploy: !include {type: string, path: ../deploy.sh}\n"
            "workers:\n  q: !include worker.yaml\n"
        ),
        ".upsun/config.vcl": "sub {}\n",
        ".upsun/files/a": "",
        "backend/build.sh": "make\n",
        "backend/worker.yaml": "commands:\n  start: work\n",
        "deploy.sh": "migrate\n",
    }
    found = load(project(tmp_path, files))
    assert found.findings == []
    configuration = interpret(found)
    application = configuration.applications["app"]
    assert (application.hooks.build, application.hooks.deploy) == ("make\n", "migrate\n")
    assert application.workers["q"].commands.start == "work"
    assert found.raw["services"]["v"]["configuration"]["vcl"] == "sub {}\n"
    assert found.raw["services"]["v"]["configuration"]["logo"] == "c3ViIHt9Cg=="
    # A finding about an included key is in the included file.
    keys = ("applications", "app", "workers", "q", "commands", "start")
    assert configuration.place(*keys) == Place("backend/worker.yaml", 2)
    assert configuration.place("applications", "app", "type") == Place(".upsun/apps/app.yaml", 1)


@pytest.mark.parametrize("path", ["missing.sh", "../outside.sh", "''"])
@pytest.mark.parametrize("complete", [True, False])
def test_included_file_that_cannot_be_read(tmp_path: Path, path: str, complete: bool) -> None:
    (tmp_path / "outside.sh").write_text("secret\n")
    text = f"{SMALL}x: 1\n".replace(
        "    crons:", f"    hooks: {{build: !include {{type: string, path: {path}}}}}\n    crons:"
    )
    found = load(project(tmp_path / "project", {CONFIG_FILE: text}), complete=complete)
    (finding,) = found.findings
    assert finding.severity is (Severity.ERROR if complete else Severity.NOT_REHEARSED)
    assert finding.place == f"{CONFIG_FILE}:9"
    assert interpret(found).applications["app"].hooks.build is None


def test_files_that_include_each_other_are_an_error(tmp_path: Path) -> None:
    files = {
        CONFIG_FILE: "applications:\n  app: !include a.yaml\n",
        "a.yaml": "x: !include b.yaml\n",
        "b.yaml": "y: !include a.yaml\n",
    }
    (finding,) = load(project(tmp_path, files)).findings
    assert finding.severity is Severity.ERROR


def test_older_forms_of_mounts() -> None:
    """They mean what the documentation on the migration says."""
    text = SMALL.replace(
        "    crons:\n",
        "    mounts:\n      /a: 'shared:files/cache/a'\n      c: 'local:files/c'\n"
        "      b: {source: local, source_path: logs}\n    crons:\n",
    )
    mounts = parse(text).applications["app"].mounts
    assert {key: (mount.source, mount.source_path) for key, mount in mounts.items()} == {
        "/a": ("storage", "cache/a"),
        "b": ("instance", "logs"),
        "c": ("instance", "c"),
    }
