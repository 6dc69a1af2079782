"""Private APIs of libraries behave as `quart_upsun.compat` expects."""

import ast
import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import markupsafe
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from jinja2 import Environment
from markupsafe import Markup
from pydantic import BaseModel
from quart import Blueprint, Quart, Response, request
from quart.wrappers.request import Body
from quart_schema import OpenAPIProvider, QuartSchema, document_querystring
from sqlalchemy import Select, bindparam, column, literal, select, text
from werkzeug.exceptions import RequestEntityTooLarge
from wtforms.widgets import html_params

import quart_upsun
from quart_upsun.compat import (
    asyncpg,
    hypercorn,
    jinja,
    pgqueuer,
    quart,
    quart_schema,
    sqlalchemy,
    wtforms,
)
from quart_upsun.database import Database
from quart_upsun.database.statements import DIALECT
from quart_upsun.database.url import parse_database_url

ROOT = Path(quart_upsun.__path__[0])


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        *asyncpg.OVERRIDDEN.items(),
        *quart.OVERRIDDEN.items(),
        *pgqueuer.OVERRIDDEN.items(),
    ],
)
def test_overridden_methods_have_the_expected_parameters(
    method: Callable[..., Any], parameters: tuple[str, ...]
) -> None:
    assert tuple(inspect.signature(method).parameters) == parameters


async def respond_once(app: Callable[..., Any]) -> bytes:
    """Serve an ASGI application with Hypercorn, and return its response to one request."""
    stop = asyncio.Event()
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    address = listener.sockets[0].getsockname()
    listener.close()
    config = Config()
    config.bind = [f"{address[0]}:{address[1]}"]
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    async with asyncio.timeout(10):
        while True:
            try:
                reader, writer = await asyncio.open_connection(*address[:2])
                break
            except OSError:
                await asyncio.sleep(0.02)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = await reader.read()
        writer.close()
        stop.set()
        await serving
    return received


async def test_hypercorn_transport_of_a_request() -> None:
    """`transport_of` finds the connection by way of an ASGI application's `send`."""
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            found.append(hypercorn.transport_of(send))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    await respond_once(app)
    assert isinstance(found[0], asyncio.WriteTransport)
    assert hypercorn.transport_of(app) is None


@pytest.mark.parametrize(
    ("headers", "writes"),
    [
        ([(b"content-length", b"10")], [b"first", b"econd"]),
        ([], [b"", b"first", b"econd", b""]),  # chunked: headers are sent at once
    ],
)
async def test_hypercorn_sends_headers_and_body_in_one_write(
    monkeypatch: pytest.MonkeyPatch, headers: list[tuple[bytes, bytes]], writes: list[bytes]
) -> None:
    monkeypatch.setattr("hypercorn.protocol.H11Protocol", H11Protocol)
    hypercorn.coalesce_writes()
    written: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            transport = hypercorn.transport_of(send)
            assert transport is not None
            write = transport.write

            def record(data: bytes) -> None:
                written.append(data)
                write(data)

            monkeypatch.setattr(transport, "write", record)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await send({"type": "http.response.body", "body": b"econd"})

    received = await respond_once(app)
    assert b"".join(written) == received
    assert len(written) == len(writes)
    assert all(part in data for part, data in zip(writes, written, strict=True))
    assert written[0].startswith(b"HTTP/1.1 200")


async def test_quart_body_internals() -> None:
    body = Body(None, 10)
    assert quart.size_limit(body) == 10
    assert quart.failure(body) is None
    body.append(b"12345")
    assert quart.buffered(body) == 5
    error = RequestEntityTooLarge()
    quart.fail(body, error)
    assert quart.buffered(body) == 0
    assert quart.failure(body) is error
    with pytest.raises(RequestEntityTooLarge):
        await body


async def test_quart_parsed_form() -> None:
    app = Quart(__name__)
    async with app.test_request_context("/", method="POST", form={"name": "value"}):
        incoming = request._get_current_object()  # type: ignore[attr-defined]
        assert quart.parsed_form(incoming) is None
        await request.form
        form = quart.parsed_form(incoming)
        assert form is not None
        assert form["name"] == "value"


def test_blueprints_add_flasks_context_processor() -> None:
    app = Quart(__name__)
    app.register_blueprint(Blueprint("any", __name__))
    processors = [each for found in app.template_context_processors.values() for each in found]
    assert quart.FLASK_CONTEXT_PROCESSOR in processors
    assert not inspect.iscoroutinefunction(quart.FLASK_CONTEXT_PROCESSOR)


def test_quart_schema_internals() -> None:

    class Query(BaseModel):
        page: int = 1

    async def plain() -> None: ...

    assert not quart_schema.takes_query(plain)
    assert quart_schema.takes_query(document_querystring(Query)(plain))
    app = Quart(__name__)
    QuartSchema(app)
    provider = quart_schema.openapi_provider(app)
    assert isinstance(provider, OpenAPIProvider)
    assert quart_schema.views_of(provider) == app.view_functions
    document = provider.schema()
    assert document["openapi"].startswith("3.1")
    assert quart_schema.REF_TEMPLATE.format(model="Problem") == "#/components/schemas/Problem"


async def test_quart_schema_converts_only_models() -> None:
    class Answer(BaseModel):
        text: str

    app = Quart(__name__)
    make_response = app.make_response
    QuartSchema(app, openapi_path=None)
    converting = app.make_response
    quart_schema.convert_only_models(app, make_response)
    assert app.make_response is not converting
    async with app.app_context():
        results: list[tuple[Any, bytes]] = [
            ("page", b"page"),
            (Response("page"), b"page"),
            (Answer(text="a"), b'{"text":"a"}'),
            ((Answer(text="a"), 201), b'{"text":"a"}'),
        ]
        for result, body in results:
            response: Any = await app.make_response(result)
            assert (await response.get_data()).replace(b"\n", b"") == body


def test_sqlalchemy_positional_parameters() -> None:
    statement: Select[Any] = select(column("a")).where(
        column("b") == bindparam("second"), column("c") == literal(3), column("d") == bindparam("d")
    )
    compiled = statement.compile(dialect=DIALECT)
    order, constants = sqlalchemy.positional_parameters(compiled)
    assert order[0] == "second"
    assert order[2] == "d"
    assert constants == {order[1]: 3}
    for position in (1, 2, 3):
        assert f"${position}" in str(compiled)


async def test_stale_statement_is_prepared_again(server_url: str) -> None:
    """Without `execute_again_if_stale` the second query fails."""
    database = Database(parse_database_url(server_url), pool_size=1)
    try:
        async with database.read() as session:
            await session.execute(text("CREATE TEMPORARY TABLE stale (a integer)"))
            await session.execute(text("INSERT INTO stale VALUES (1)"))
            assert (await session.execute(text("SELECT * FROM stale"))).all() == [(1,)]
            await session.execute(text("ALTER TABLE stale ADD COLUMN b integer DEFAULT 2"))
            assert (await session.execute(text("SELECT * FROM stale"))).all() == [(1, 2)]
    finally:
        await database.close()


def test_pgqueuer_channel_and_notice() -> None:
    assert pgqueuer.channel() == "ch_pgqueuer"
    assert '"type":"table_changed_event"' in pgqueuer.change_notice()


PUBLIC = {"_replace", "_make", "_asdict", "_exit"}  # public API of named tuples and `os`


def private_uses(path: Path) -> Iterator[str]:
    """Yield each use of a private API in a module."""
    tree = ast.parse(path.read_text())
    defined = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    } | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in ast.walk(tree):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] == "pgqueuer":
                yield f"{where} imports {module}"
            if not module.startswith("quart_upsun"):
                for alias in node.names:
                    if alias.name.startswith("_"):
                        yield f"{where} imports {module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            is_dunder = node.attr.endswith("__")
            if node.attr == "__self__" or not (is_dunder or node.attr in defined | PUBLIC):
                yield f"{where} uses {node.attr}"
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "getattr"
            and isinstance(node.args[1], ast.Constant)
            and isinstance(name := node.args[1].value, str)
            and name.startswith("_")
            and not name.endswith("__")
        ):
            yield f"{where} uses {name}"


# The schema gate queries a `Database` without waiting for itself.
ALLOWED = {
    "gate.py": {"_session"},
    # Documented by Python and Werkzeug.
    "call.py": {"_current_frames"},
    "mount.py": {"_get_current_object"},
}


def test_private_apis_are_used_in_compat_only() -> None:
    sources = [
        path
        for path in ROOT.rglob("*.py")
        if not {"tests", "compat"} & set(path.relative_to(ROOT).parts)
    ]
    found = [
        each
        for path in sources
        for each in private_uses(path)
        if each.rpartition(" ")[2] not in ALLOWED.get(path.name, set())
    ]
    assert found == []
    assert list(private_uses(ROOT / "compat" / "quart.py"))


class Html:
    def __html__(self) -> str:
        return "<i>html</i>"


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        "<a href=\"x\">'&'</a>",
        Markup("<b>bold</b>"),
        12,
        True,
        None,
        1.5,
        Html(),
        ["<"],
    ],
)
def test_templates_escape_as_markupsafe_does(value: Any) -> None:
    jinja.speed_up_escaping()
    environment = Environment(autoescape=True)
    expected = str(markupsafe.escape(value))
    assert environment.from_string("{{ value }}").render(value=value) == expected
    macro = "{% macro show(value) %}<{{ value }}>{% endmacro %}{{ show(value) }}"
    assert environment.from_string(macro).render(value=value) == f"<{expected}>"
    block = "{% set text %}{{ value }}{% endset %}{{ text }}{{ text | upper | lower }}"
    assert environment.from_string(block).render(value=value) == expected + expected.lower()


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"class_": "a b", "id": "x", "value": "<\"'&>", "required": True, "disabled": False},
        {"aria_describedby": "a b", "data_some_thing": 3, "value": Markup('"bold"'), "for_": None},
        {"value": Html()},
    ],
)
def test_attributes_of_inputs_are_those_of_wtforms(attributes: dict[str, Any]) -> None:
    ours, theirs = wtforms.html_params(**attributes), html_params(**attributes)
    assert (ours, type(ours)) == (theirs, type(theirs))
