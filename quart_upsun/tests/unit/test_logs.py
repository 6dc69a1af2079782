"""Log output: one line per event, valid JSON, no secrets and no forged lines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from quart_upsun.logging import configure_logging, get_logger


@pytest.fixture(params=["json", "readable"])
def output(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging("debug", readable=request.param == "readable")
    yield stream
    root.handlers, root.level = handlers, level
    structlog.contextvars.clear_contextvars()


def test_structlog_and_logging_write_one_line_each(output: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(request_id="abc123")
    get_logger("one").info("from structlog", answer=42)
    logging.getLogger("two").warning("from %s", "logging")
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert "from structlog" in lines[0]
    assert "42" in lines[0]
    assert "from logging" in lines[1]
    assert all("abc123" in line for line in lines)


def test_log_lines_cannot_be_forged(output: io.StringIO) -> None:
    forged = '/x\n{"event": "forged"}\r\x1b[2J\u2028'
    get_logger("one").info(f"GET {forged}", path=forged)
    logging.getLogger("two").error("GET %s", forged)
    assert len(output.getvalue().splitlines()) == 2
    # The stream is not a terminal, so the output must not contain color codes.
    assert not set("\r\x1b\u2028") & set(output.getvalue())


def test_secrets_are_hidden(output: io.StringIO) -> None:
    get_logger("one").info(
        "connect to postgresql://main:hunter2@db/main",
        password="hunter2",
        csrf_token="hunter2",
        Authorization="hunter2",
        url="postgresql://main:hunter2@db/main",
    )
    try:
        raise ValueError("cannot reach postgresql://main:hunter2@db/main")
    except ValueError:
        logging.getLogger("two").exception("failed")
    assert "hunter2" not in output.getvalue()
    assert "ValueError" in output.getvalue()


def test_database_rows_are_not_logged(output: io.StringIO) -> None:
    try:
        raise ValueError(
            "duplicate key value violates unique constraint\n"
            "DETAIL:  Key (lower(email))=(ada@example.com) already exists.\n"
            "HINT:  none"
        )
    except ValueError:
        logging.getLogger("two").exception("failed")
    assert "ada@example.com" not in output.getvalue()
    assert "duplicate key" in output.getvalue()
    assert "HINT" in output.getvalue()


def test_json_output_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        configure_logging("info", readable=False)
        get_logger("one").info("hello", name="Ada")
        get_logger("one").debug("not written")
    finally:
        root.handlers, root.level = handlers, level
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) | {"timestamp": ""} == {
        "event": "hello",
        "name": "Ada",
        "level": "info",
        "logger": "one",
        "timestamp": "",
    }
