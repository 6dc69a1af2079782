"""A Flask application with the routes of the sample server, for tests that run against both."""

import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, jsonify, request, url_for

from quart_upsun.logging import get_logger

log = get_logger(__name__)
CHUNK = b"x" * 65536
TIME_LIMIT_SECONDS = 2.0


def create_app() -> Flask:
    app = Flask(__name__, static_folder=None)
    app.config["SESSION_COOKIE_NAME"] = "old_session"
    app.add_url_rule("/", view_func=home)
    app.add_url_rule("/about/", view_func=about, methods=["GET"])
    # The application that it is mounted in has a page /about/ of its own.
    app.add_url_rule("/old-about/", view_func=about, methods=["GET"])
    app.add_url_rule("/slow", view_func=slow)
    app.add_url_rule("/body", view_func=body, methods=["POST"])
    app.add_url_rule("/form", view_func=form, methods=["POST"])
    app.add_url_rule("/quick", view_func=quick, methods=["GET", "POST"])
    app.add_url_rule("/stubborn", view_func=stubborn)
    app.add_url_rule("/flood", view_func=flood)
    app.add_url_rule("/thread", view_func=thread)
    app.add_url_rule("/error/<name>", view_func=error)
    app.add_url_rule("/origin", view_func=origin)
    app.add_url_rule("/url", view_func=url)
    app.add_url_rule("/log/<text>", view_func=log_text)
    return app


def home() -> str:
    return "<html><title>Old</title></html>"


def about() -> str:
    return "<html><title>About</title></html>"


def slow() -> str:
    log.info("sleeping")
    time.sleep(float(request.args["seconds"]))
    return "done"


def body() -> str:
    return str(len(request.get_data(cache=False)))


def form() -> Response:
    return jsonify(
        fields=sum(len(values) for values in request.form.listvalues()),
        files=sum(len(values) for values in request.files.listvalues()),
    )


def quick() -> str:
    return "answered"


def stubborn() -> Response:
    def chunks() -> Iterator[bytes]:
        while True:
            yield b"more\n"
            time.sleep(0.1)

    return Response(chunks(), content_type="text/plain")


def flood() -> Response:
    def chunks() -> Iterator[bytes]:
        try:
            for _ in range(1000):
                yield CHUNK
        finally:
            log.info("flood ended")

    return Response(chunks(), content_type="text/plain")


def thread() -> str:
    log.info("blocking a thread")
    time.sleep(60)
    return "done"


def error(name: str) -> str:
    raise RuntimeError("this view fails")


def origin() -> Response:
    return jsonify(address=request.remote_addr, scheme=request.scheme, host=request.host)


def url() -> str:
    return url_for("url", _external=True)


def log_text(text: str) -> str:
    log.info("logged", path=request.path, text=text)
    return text


def raw(environ: dict[str, Any], start_response: Any) -> Any:
    """A plain WSGI application that breaks in every way. The path says how."""
    plain = [("Content-Type", "text/plain")]
    match environ["PATH_INFO"]:
        case "/raises":
            raise ValueError("a secret from the request")
        case "/exits":
            raise SystemExit(3)
        case "/raises-after-start":
            start_response("200 OK", plain)
            raise ValueError("a secret from the request")
        case "/replaces":
            start_response("200 OK", plain)
            try:
                raise ValueError("a secret from the request")
            except ValueError as error:
                start_response("418 Teapot", plain, (type(error), error, error.__traceback__))
            return [b"replaced"]
        case "/starts-twice":
            start_response("200 OK", plain)
            start_response("200 OK", plain)
        case "/never-starts":
            return [b"body"]
        case "/text":
            start_response("200 OK", plain)
            return ["text"]
        case "/status":
            start_response("fine", plain)
        case "/line-break":
            start_response("200 OK", [("X-Header", "a\r\nSet-Cookie: a=b")])
        case "/short":
            start_response("200 OK", [*plain, ("Content-Length", "10")])
            return [b"short"]
        case "/long":
            start_response("200 OK", [*plain, ("Content-Length", "4")])
            return [b"longer", b"than that"]
        case "/breaks-off":
            start_response("200 OK", plain)
            return _break_off()
        case "/writes":
            write = start_response("200 OK", plain)
            write(b"written, ")
            return [b"returned"]
        case "/errors":
            environ["wsgi.errors"].write("first line\nsecond")
            environ["wsgi.errors"].writelines([" line\n", "third"])
            start_response("200 OK", plain)
            return []
        case "/cookies":
            names = ("session", "login", "old")
            start_response("200 OK", [*plain, *(("Set-Cookie", f"{name}=x") for name in names)])
            return [environ.get("HTTP_COOKIE", "none").encode()]
        case "/cached":
            start_response("200 OK", [*plain, ("Cache-Control", environ["QUERY_STRING"])])
            return [b"cached"]
        case "/headers":
            policy = ("Content-Security-Policy", "default-src 'self'")
            start_response("200 OK", [*plain, policy, ("Connection", "close")])
            return [b""]
        case "/file":
            start_response("200 OK", plain)
            return environ["wsgi.file_wrapper"](environ["wsgi.input"])
        case _:
            start_response("200 OK", plain)
            keys = sorted(key for key, value in environ.items() if isinstance(value, str))
            return ["".join(f"{key}={environ[key]}\n" for key in keys).encode()]
    return []


def _break_off() -> Iterator[bytes]:
    yield b"first part"
    raise ValueError("a secret from the request")
