"""The container's own web server, as nginx: files, and what goes to the application.

Where Upsun's documentation is silent, this does what nginx, which the platform uses too, does by
itself; each such decision is said where it is made.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rehearsal.configuration import Application, Location, Rule
from rehearsal.network import raise_file_limit

# Where distributions put the modules of their nginx.
MODULE_DIRECTORIES = (
    "/usr/lib/nginx/modules",
    "/usr/share/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/local/lib/nginx/modules",
    "/usr/local/libexec/nginx",
    "/etc/nginx/modules",
)
BROTLI = "ngx_http_brotli_static_module.so"

SECONDS = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
    "M": 30 * 86400.0,
    "y": 365 * 86400.0,
}

# By extension. Here, because not every nginx comes with a list, and old ones lack newer formats.
TYPES = {
    "application/atom+xml": "atom",
    "application/gzip": "gz",
    "application/json": "json map",
    "application/manifest+json": "webmanifest",
    "application/pdf": "pdf",
    "application/rss+xml": "rss",
    "application/vnd.ms-fontobject": "eot",
    "application/wasm": "wasm",
    "application/xhtml+xml": "xhtml",
    "application/zip": "zip",
    "audio/aac": "aac",
    "audio/mp4": "m4a",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg oga opus",
    "audio/wav": "wav",
    "font/otf": "otf",
    "font/ttf": "ttf",
    "font/woff": "woff",
    "font/woff2": "woff2",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/jpeg": "jpeg jpg",
    "image/png": "png",
    "image/svg+xml": "svg svgz",
    "image/tiff": "tif tiff",
    "image/webp": "webp",
    "image/x-icon": "ico",
    "text/calendar": "ics",
    "text/css": "css",
    "text/csv": "csv",
    "text/html": "html htm",
    "text/javascript": "js mjs",
    "text/markdown": "md",
    "text/plain": "txt",
    "text/xml": "xml",
    "video/mp4": "mp4",
    "video/mpeg": "mpeg mpg",
    "video/ogg": "ogv",
    "video/webm": "webm",
}

# How long an application may take until it says something, and a stream may be silent.
SILENCE_SECONDS = 3600


def brotli_module() -> Path | None:
    """Return nginx's module that serves `.br` siblings, if this machine has it."""
    for directory in MODULE_DIRECTORIES:
        path = Path(directory, BROTLI)
        if path.is_file():
            return path
    return None


def seconds(expires: int | str) -> int:
    """Return how long that is, as Upsun writes times: `-1`, `300`, `5m`, `1y`.

    Raises:
        ValueError: it is no time.
    """
    match = re.fullmatch(r"(-?\d+)(ms|s|m|h|d|w|M|y|)", str(expires).strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{expires!r} is no time: a number, and one of ms, s, m, h, d, w, M, y")
    return int(int(match[1]) * SECONDS[match[2]])


def size(text: str) -> str:
    """Return a size as nginx takes it: `250m`.

    Raises:
        ValueError: it is no size.
    """
    if re.fullmatch(r"\d+[kKmMgG]?", text.strip(), re.ASCII) is None:
        raise ValueError(f"{text!r} is no size: a number, and K, M or G")
    return text.strip()


def quoted(text: str) -> str:
    """Return a string as nginx reads it, in quotes, where `$` is not looked at."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", text)  # a header has one line
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def literal(text: str) -> str:
    """Return a string as nginx reads it where `$` begins a variable; see `DOLLAR`."""
    return quoted(text.replace("$", "${dollar}"))


# nginx has no way to write the sign itself.
DOLLAR = 'geo $dollar { default "$"; }'


def preamble(scratch: str, *, log: str = "error") -> str:
    """Return how nginx runs here: in the foreground, and with all its files below `scratch`."""
    files = raise_file_limit()
    return f"""
daemon off;
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
worker_rlimit_nofile {files};
# Two for each request that is held; a deploy of some seconds holds thousands.
events {{ worker_connections {files // 2}; }}
pid {quoted(f"{scratch}/nginx.pid")};
lock_file {quoted(f"{scratch}/nginx.lock")};
error_log stderr {log};
"""


def http(scratch: str) -> str:
    """Return what both servers say of HTTP in the same way."""
    temporary = "\n".join(
        f"{name}_temp_path {quoted(f'{scratch}/{name}')};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
access_log off;
log_not_found off;
server_tokens off;
absolute_redirect off;
default_type application/octet-stream;
sendfile on;
tcp_nodelay on;
map_hash_bucket_size 512;
server_names_hash_bucket_size 512;
variables_hash_bucket_size 512;
large_client_header_buffers 4 32k;
{temporary}
{DOLLAR}

# Nothing but WebSockets is let out of HTTP/1.1: some servers would begin to speak HTTP/2.
map $http_upgrade $upgrade_header {{ default ""; "~*^websocket$" $http_upgrade; }}
map $upgrade_header $connection_header {{ "" close; default upgrade; }}
"""


def configuration(
    application: Application, *, directory: str, port: int, upstream: str, scratch: str
) -> str:
    """Return nginx's configuration.

    Args:
        application: what `web` says is done.
        directory: where the application lies for nginx.
        port: it listens there, on 127.0.0.1.
        upstream: where the application listens: `127.0.0.1:8888` or `unix:/run/app.sock`.
        scratch: a directory that nginx may write to.

    Raises:
        ValueError: a time or a size is none; the message says which.
    """
    # The documentation has no default for a container without locations; one that served nothing
    # would be of no use.
    locations = application.web.locations or {"/": Location(passthru=True)}
    server: dict[str, str] = {}  # by what they are for, so that none comes twice
    for number, (path, location) in enumerate(locations.items()):
        _location(server, path.strip("/"), location, directory, number)
        server[f"@{number}"] = f"location @application_{number} {{ {_proxied(location)} }}"
    module = brotli_module()
    types = "\n".join(f"{kind} {extensions};" for kind, extensions in TYPES.items())
    blocks = "\n".join(server.values())
    return f"""
{f"load_module {quoted(str(module))};" if module else ""}
{preamble(scratch)}

http {{
{http(scratch)}
types {{
{types}
}}

# Siblings, also for a client that came by way of a proxy.
gzip_static on;
gzip_vary on;
gzip_proxied any;
gzip_http_version 1.0;
{"brotli_static on;" if module else ""}

# So the documentation says of the wildcard, for requests with credentials.
map $http_origin $any_origin {{ "" "*"; default $http_origin; }}

upstream application {{ server {quoted(upstream)}; }}

server {{
listen 127.0.0.1:{port};
recursive_error_pages on;
set $rewritten "";

proxy_http_version 1.1;
proxy_set_header Host $http_host;
proxy_set_header Upgrade $upgrade_header;
proxy_set_header Connection $connection_header;
proxy_redirect off;
proxy_read_timeout {SILENCE_SECONDS}s;
proxy_send_timeout {SILENCE_SECONDS}s;
# For the router, which strips it.
proxy_pass_header X-Accel-Buffering;

{blocks}
}}
}}
"""


def _proxied(location: Location) -> str:
    buffering = location.request_buffering
    return f"""
client_max_body_size {size(buffering.max_request_size)};
proxy_request_buffering {"on" if buffering.enabled else "off"};
proxy_pass http://application;
"""


def _location(
    server: dict[str, str], path: str, location: Location, directory: str, number: int
) -> None:
    """Add the blocks of one location.

    It ends at a slash: `/staticfoo` does not belong to `/static`. The path without the slash is
    that of the directory, and there is nothing to be served but its index.
    """
    limit = f"client_max_body_size {size(location.request_buffering.max_request_size)};"
    if path and location.root is not None and location.allow and location.index:
        target = literal(f"/{path}/")[:-1] + '$is_args$args"'
        server[f"/{path}"] = f"location = {quoted(f'/{path}')} {{ return 301 {target}; }}"
    elif path:
        bare = location.model_copy(update={"root": None})
        own = _handling(server, bare, Rule(), number)
        server[f"/{path}"] = f"location = {quoted(f'/{path}')} {{ {own} }}"
    # Each rule is a location in the location, and what is said outside the rules is the last of
    # them, because nginx would hand headers down to a rule that takes them all away. If several
    # match, the documentation does not say which one counts: in nginx it is the first, and case
    # matters. An expression sees the whole path.
    inner = []
    for expression, rule in location.rules.items():
        own = _handling(server, location, rule, number, expression)
        inner.append(f"location ~ {quoted(expression)} {{ {own} }}")
    if location.root is not None and location.index and not location.allow:
        # Directories are looked at, and a rule may allow their index.
        inner.append(
            f'location ~ "/$" {{ {_handling(server, location, Rule(allow=True), number)} }}'
        )
    inner.append(f'location ~ "^" {{ {_handling(server, location, Rule(), number)} }}')
    prefix = f"/{path}/" if path else "/"
    alias = ""
    if location.root is not None:
        parts = (directory.rstrip("/"), location.root.strip("/"), "")
        alias = f"alias {literal(re.sub('/+', '/', '/'.join(parts)))};"
    server[prefix] = "\n".join([f"location {quoted(prefix)} {{", limit, alias, *inner, "}"])


def _handling(
    server: dict[str, str], location: Location, rule: Rule, number: int, expression: str = ""
) -> str:
    """Return what is done with the paths of a location, or with those that match a rule of it."""
    allow = location.allow if rule.allow is None else rule.allow
    passthru = location.passthru if rule.passthru is None else rule.passthru
    files = location.root is not None and allow
    if isinstance(passthru, str):
        otherwise = _rewriting(server, passthru, number, expression)
    else:
        otherwise = f"@application_{number}" if passthru else ""
    if not files:
        if passthru is True:
            return _proxied(location)
        if otherwise:
            return f"error_page 418 = {otherwise}; return 418;"
        return "return 404;" if allow else "return 403;"
    tried = "$uri $uri/" if location.index else "$uri"
    lines = [f"try_files {tried} {otherwise or '=404'};"]
    if location.index:
        lines.append(f"index {' '.join(literal(name) for name in location.index)};")
    if otherwise:
        # A directory without an index, a file that may not be read, and methods files do not know.
        lines.append(f"error_page 403 404 405 = {otherwise};")
    expires = location.expires if rule.expires is None else rule.expires
    headers = location.headers if rule.headers is None else rule.headers
    return "\n".join([*lines, *_headers(expires, headers)])


def _headers(expires: int | str, headers: Mapping[str, str]) -> Iterator[str]:
    """Yield what puts headers on files; the application's answers pass through other blocks."""
    after = seconds(expires)
    if "cache-control" not in {name.lower() for name in headers}:
        # The default is no caching, which nginx writes as `no-cache`.
        yield f"expires {after if after < 0 else f'{after}s'};"
    for name, value in headers.items():
        match name.lower():
            case "content-type":  # as a header it would be a second one
                yield f"types {{ }} default_type {quoted(value)};"
            case "access-control-allow-origin" if value.strip() == "*":
                yield f"add_header {quoted(name)} $any_origin;"
                yield "add_header Vary Origin;"
            case _:
                yield f"add_header {quoted(name)} {literal(value)};"


def _rewriting(server: dict[str, str], target: str, number: int, expression: str) -> str:
    """Return the name of the block that looks up another path instead, and add the block.

    That path may be a file's. If it is none, the application gets it, with the first one's query.
    """
    # What an expression has named can be used; nothing else in it is special.
    names = re.findall(r"\(\?P?[<'](\w+)[>']", expression)
    parts = re.split(r"\$\{?(" + "|".join(names) + r")\b\}?" if names else r"(?!)", target)
    written = "".join(
        f"${{{part}}}" if index % 2 else part.replace("$", "${dollar}")
        for index, part in enumerate(parts)
    )
    name = f"@rewrite_{number}_{len(server)}"
    server[name] = f"""location {name} {{
error_page 418 = @application_{number};
if ($rewritten) {{ return 418; }}
set $rewritten 1;
rewrite ^ {quoted(written)} last;
}}"""
    return name
