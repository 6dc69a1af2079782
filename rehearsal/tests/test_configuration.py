"""Reading `.upsun/config.yaml`: the models, the lines of keys, and error messages."""

from pathlib import Path

import pytest

from rehearsal.configuration import CONFIG_FILE, ConfigurationError, load, parse, read

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


def problems(text: str) -> list[tuple[str, int]]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    return caught.value.problems


def test_line_of_a_key() -> None:
    lines = SMALL.splitlines()
    configuration = parse(SMALL)
    for keys in [
        ("applications", "app", "relationships", "two"),
        ("applications", "app", "crons", "clean"),
        ("services", "db"),
    ]:
        assert keys[-1] in lines[configuration.line(*keys) - 1]
    # A missing key has the line of its nearest ancestor.
    missing = ("services", "db", "size", "large")
    assert configuration.line(*missing) == configuration.line("services", "db")
    assert configuration.line("nothing") == 1


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
        ("", 1, "must be a mapping"),
        ("- a\n", 1, "must be a mapping"),
        ("applications: {}\n", 1, "applications: "),
        ("applications:\n  app:\n    web: [\n", 4, "invalid YAML"),
        ("applications:\n  app: \t{\n", 2, "invalid YAML"),
        ("date: 2024-13-45\n", 0, "invalid YAML"),
        ("a: &a\n  b: *a\n", 0, "contains it"),
        ("applications:\n  app:\n    type: 3\n", 3, "applications.app.type"),
        ("applications:\n  app:\n    wep: {}\n", 3, "unknown key"),
        (SMALL.replace("type: postgresql", "typ: postgresql"), 12, "services.db.type"),
        (SMALL.replace('spec: "H', 'spek: "H'), 10, "crons.clean.spec"),
    ],
)
def test_problem_has_a_message_and_a_line(text: str, line: int, words: str) -> None:
    found = problems(text)
    assert any(words in message and place == line for message, place in found), found


def test_missing_or_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not in the commit"):
        read(tmp_path)
    file = tmp_path / CONFIG_FILE
    file.parent.mkdir()
    file.write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(tmp_path)


def test_load_returns_raw_yaml_and_lines() -> None:
    raw, lines = load("a:\n  - b\n  - 3: c\n")
    assert raw == {"a": ["b", {3: "c"}]}
    assert lines == {("a",): 1, ("a", "0"): 2, ("a", "1"): 3, ("a", "1", "3"): 3}
