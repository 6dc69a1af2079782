"""The identity of the environment that a process belongs to."""

import base64
import json
import re
from pathlib import Path

import pytest

from app.settings import Settings, load_database_settings, load_settings
from quart_upsun import platform as upsun
from quart_upsun.database.ownership import Identity

CONTAINER = {"PLATFORM_APPLICATION_NAME": "app", "PLATFORM_ENVIRONMENT": "main-abc"}
ENDPOINT = {"scheme": "pgsql", "host": "postgresql.internal", "port": 5432}


def encoded(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def test_each_checkout_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(Settings, "root", tmp_path / "one")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@localhost/mine")
    monkeypatch.delenv("DATABASE_ENVIRONMENT", raising=False)
    identity = load_settings().identity
    assert re.fullmatch(r"local-[0-9a-f]{8}", identity.name)
    assert (identity.type, identity.is_named) == ("local", False)
    assert load_settings().identity == load_database_settings().identity == identity
    monkeypatch.setattr(Settings, "root", tmp_path / "two")
    assert load_settings().identity != identity


def test_checkout_without_a_writable_data_directory_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".data").write_text("a file where the directory belongs")
    monkeypatch.setattr(Settings, "root", tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@localhost/mine")
    monkeypatch.delenv("DATABASE_ENVIRONMENT", raising=False)
    assert load_database_settings().identity.name == ""
    monkeypatch.setenv("DATABASE_ENVIRONMENT", "production")
    assert load_database_settings().identity == Identity("production", "local", is_named=True)


def test_empty_checkout_name_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "environment").touch()
    monkeypatch.setattr(Settings, "root", tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@localhost/mine")
    monkeypatch.delenv("DATABASE_ENVIRONMENT", raising=False)
    assert (
        load_database_settings().identity.name
        == (tmp_path / ".data" / "environment").read_text().strip()
        != ""
    )


@pytest.mark.parametrize(
    ("relationships", "expected"),
    [
        ({"postgresql": [ENDPOINT]}, {("postgresql.internal", 5432)}),
        ({"postgresql": {"0": {**ENDPOINT, "port": "5433"}}}, {("postgresql.internal", 5433)}),
        (
            {"a": [ENDPOINT], "b": [{**ENDPOINT, "host": "b"}]},
            {("postgresql.internal", 5432), ("b", 5432)},
        ),
        ({"cache": [{"scheme": "redis", "host": "cache.internal", "port": 6379}]}, set()),
        ({"postgresql": [{"scheme": "pgsql", "host": None}]}, set()),
        ({"postgresql": None}, set()),
        (["postgresql"], set()),
    ],
)
def test_databases_are_read_from_relationships(
    relationships: object, expected: set[tuple[str, int]]
) -> None:
    environment = upsun.environment({**CONTAINER, "PLATFORM_RELATIONSHIPS": encoded(relationships)})
    assert environment is not None
    assert environment.databases == expected


@pytest.mark.parametrize("broken", ["", "not base64", base64.b64encode(b"{").decode()])
def test_invalid_relationships_are_ignored(broken: str) -> None:
    environment = upsun.environment({**CONTAINER, "PLATFORM_RELATIONSHIPS": broken})
    assert environment is not None
    assert environment.databases == frozenset()


def test_database_of_a_relationship_belongs_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in CONTAINER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PLATFORM_ENVIRONMENT_TYPE", "staging")
    monkeypatch.setenv("PLATFORM_RELATIONSHIPS", encoded({"postgresql": [ENDPOINT]}))
    monkeypatch.setenv("DATABASE_URL", "postgresql://main@postgresql.internal/main")
    own = Identity("main-abc", "staging", has_own_database=True)
    # Even if a project variable names another environment.
    for name in ("", "production"):
        monkeypatch.setenv("DATABASE_ENVIRONMENT", name)
        assert load_database_settings().identity == own
    monkeypatch.setenv("DATABASE_URL", "postgresql://main@db.elsewhere.example/main")
    assert load_database_settings().identity == Identity("production", "staging", is_named=True)
    monkeypatch.setenv("DATABASE_ENVIRONMENT", "")
    assert load_database_settings().identity == Identity("main-abc", "staging")
