"""The WSGI environment of a request (PEP 3333)."""

from collections.abc import Callable
from typing import IO, Any
from urllib.parse import urlsplit

from quart import Request
from werkzeug.wsgi import FileWrapper

from quart_upsun.legacy.login import LOGIN, MountedLogin
from quart_upsun.logging import get_logger

log = get_logger("wsgi.errors")

FILE_CHUNK_BYTES = 64 * 1024
# The scheme, the host and the client's address in the environment are already those that a trusted
# proxy has sent. An application that believes these headers would believe the client.
PROXY_HEADERS = {"FORWARDED", "X_FORWARDED_FOR", "X_FORWARDED_HOST", "X_FORWARDED_PORT"} | {
    *("X_FORWARDED_PREFIX", "X_FORWARDED_PROTO", "X_FORWARDED_SCHEME", "X_FORWARDED_SSL"),
    "PROXY",  # HTTP_PROXY, see https://httpoxy.org
}


class ErrorLog:
    """`wsgi.errors`: a text stream that writes each line to the log."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        """Log the complete lines of `text`, and keep the rest for the next call."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            log.error("output of the mounted application", text=line)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several strings, which need not be lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log the incomplete line."""
        if self._rest:
            self.write("\n")


def build_environ(
    request: Request,
    body: IO[bytes],
    length: int,
    *,
    prefix: str,
    public_origin: str | None,
    own_cookies: frozenset[str],
    login: MountedLogin,
) -> dict[str, Any]:
    """Return the WSGI environment of a request.

    Args:
        request: the request.
        body: the whole request body.
        length: its size, in bytes.
        prefix: the path of the mount without the slash at its end; empty for the root.
        public_origin: the origin for external URLs, if it is not that of the request.
        own_cookies: cookies of this application, which the mounted one must not see.
        login: who is logged in.
    """
    host, scheme = request.host, request.scheme
    if public_origin:
        scheme, host = public_origin.split("://", 1)
    server = urlsplit(f"//{host}")
    try:
        port = server.port
    except ValueError:
        port = None
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": _native(request.root_path + prefix),
        "PATH_INFO": _native(request.path.removeprefix(prefix)),
        "QUERY_STRING": request.query_string.decode("latin1"),
        "SERVER_NAME": server.hostname or "localhost",
        "SERVER_PORT": str(port or (443 if scheme == "https" else 80)),
        "SERVER_PROTOCOL": f"HTTP/{request.http_version}",
        "REMOTE_ADDR": request.remote_addr or "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": body,
        # The body is complete, so it can be read to its end if it came without a length.
        "wsgi.input_terminated": True,
        "wsgi.errors": ErrorLog(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": _wrap_file,
        LOGIN: login,
    }
    for name, value in request.headers.items():
        if "_" in name:
            continue  # cannot be told apart from the same name with hyphens
        key = name.upper().replace("-", "_")
        if key in PROXY_HEADERS or key in {"CONTENT_LENGTH", "TRANSFER_ENCODING"}:
            continue
        if key == "COOKIE":
            value = _without(value, own_cookies)
            if not value:
                continue
        if key != "CONTENT_TYPE":
            key = f"HTTP_{key}"
        separator = "; " if key == "HTTP_COOKIE" else ","
        environ[key] = f"{environ[key]}{separator}{value}" if key in environ else value
    environ["HTTP_HOST"] = host
    if length or request.method in {"POST", "PUT", "PATCH"}:
        environ["CONTENT_LENGTH"] = str(length)
    if login.username is not None:
        environ["REMOTE_USER"] = _native(login.username)
    return environ


def _native(text: str) -> str:
    """Return a string in the form of PEP 3333: its UTF-8 bytes as Latin-1 characters."""
    return text.encode().decode("latin1")


def _without(cookies: str, names: frozenset[str]) -> str:
    """Remove cookies from a Cookie header."""
    kept = (each.strip() for each in cookies.split(";"))
    return "; ".join(each for each in kept if each.partition("=")[0] not in names)


def _wrap_file(file: IO[bytes], size: int = 0) -> FileWrapper:
    """Return the chunks of a file, larger than Werkzeug's: each one wakes the event loop."""
    return FileWrapper(file, max(size, FILE_CHUNK_BYTES))


WsgiApplication = Callable[..., Any]
