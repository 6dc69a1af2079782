"""Generate nginx's configuration for the container's web server, from `web.locations`.

Where Upsun's documentation does not define a behaviour, this follows nginx, which the platform uses
too. A comment marks each such decision.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rehearsal.configuration import Application, Location, Rule
from rehearsal.network import raise_file_limit

# Directories of nginx modules in various distributions.
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

# MIME types by extension. Not every nginx has a list, and old ones lack newer formats.
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

# The timeout between two reads or writes: event streams may be idle for long.
SILENCE_SECONDS = 3600


def brotli_module() -> Path | None:
    """Return the path of the nginx module that serves `.br` files; None if it is not installed."""
    for directory in MODULE_DIRECTORIES:
        path = Path(directory, BROTLI)
        if path.is_file():
            return path
    return None


def seconds(expires: int | str) -> int:
    """Convert a duration in Upsun's format (`-1`, `300`, `5m`, `1y`) to seconds.

    Raises:
        ValueError: the duration is invalid.
    """
    match = re.fullmatch(r"(-?\d+)(ms|s|m|h|d|w|M|y|)", str(expires).strip(), re.ASCII)
    if match is None:
        raise ValueError(
            f"invalid duration {expires!r}: write a number and one of the units ms, s, m, h, d, w,"
            " M, y"
        )
    return int(int(match[1]) * SECONDS[match[2]])


def size(text: str) -> str:
    """Return a size in nginx's format: `250m`.

    Raises:
        ValueError: the size is invalid.
    """
    if re.fullmatch(r"\d+[kKmMgG]?", text.strip(), re.ASCII) is None:
        raise ValueError(f"invalid size {text!r}: write a number and one of the units K, M, G")
    return text.strip()


def quoted(text: str) -> str:
    """Return a quoted string for nginx directives that do not expand variables."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", text)  # line breaks must not get into a header
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def literal(text: str) -> str:
    """Return a quoted string for nginx directives that expand variables; see `DOLLAR`."""
    return quoted(text.replace("$", "${dollar}"))


# nginx has no escape sequence for a dollar sign.
DOLLAR = 'geo $dollar { default "$"; }'


def preamble(scratch: str, *, log: str = "error") -> str:
    """Return the main directives: run in the foreground, with all files below `scratch`."""
    files = raise_file_limit()
    return f"""
daemon off;
{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
worker_rlimit_nofile {files};
# Two connections for each held request; a deploy of a few seconds holds thousands.
events {{ worker_connections {files // 2}; }}
pid {quoted(f"{scratch}/nginx.pid")};
lock_file {quoted(f"{scratch}/nginx.lock")};
error_log stderr {log};
"""


def http(scratch: str) -> str:
    """Return the HTTP directives that router and web server share."""
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

# Forward upgrades to WebSocket only: with others, some servers would switch to HTTP/2.
map $http_upgrade $upgrade_header {{ default ""; "~*^websocket$" $http_upgrade; }}
map $upgrade_header $connection_header {{ "" close; default upgrade; }}
"""


def configuration(
    application: Application, *, directory: str, port: int, upstream: str, scratch: str
) -> str:
    """Return nginx's configuration.

    Args:
        application: the application, whose `web.locations` are served.
        directory: the application's directory as nginx sees it.
        port: the port to listen on, on 127.0.0.1.
        upstream: the application's address: `127.0.0.1:8888` or `unix:/run/app.sock`.
        scratch: a directory that nginx may write to.

    Raises:
        ValueError: a duration or a size is invalid; the message quotes it.
    """
    # The documentation defines no default for an application without locations. Pass all requests
    # to it, since a container that serves nothing would be useless.
    locations = application.web.locations or {"/": Location(passthru=True)}
    server: dict[str, str] = {}  # nginx blocks by path or name, to avoid duplicates
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

# Serve precompressed files, to clients behind a proxy too.
gzip_static on;
gzip_vary on;
gzip_proxied any;
gzip_http_version 1.0;
{"brotli_static on;" if module else ""}

# Documented for a wildcard: requests with an Origin header get that origin.
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
# The router removes this header.
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
    """Add the nginx blocks of one location.

    A location matches whole path segments: `/staticfoo` is not in `/static`. The path without a
    trailing slash is the directory itself, for which only an index file can be served.
    """
    limit = f"client_max_body_size {size(location.request_buffering.max_request_size)};"
    if path and location.root is not None and location.allow and location.index:
        target = literal(f"/{path}/")[:-1] + '$is_args$args"'
        server[f"/{path}"] = f"location = {quoted(f'/{path}')} {{ return 301 {target}; }}"
    elif path:
        bare = location.model_copy(update={"root": None})
        own = _handling(server, bare, Rule(), number)
        server[f"/{path}"] = f"location = {quoted(f'/{path}')} {{ {own} }}"
    # Each rule is a nested location. The location's own settings are the last nested location,
    # because rules would inherit headers that they are supposed to replace. The documentation does
    # not define which of several matching rules applies: as in nginx, it is the first one, and
    # matching is case-sensitive. The expression is matched against the whole path.
    inner = []
    for expression, rule in location.rules.items():
        own = _handling(server, location, rule, number, expression)
        inner.append(f"location ~ {quoted(expression)} {{ {own} }}")
    if location.root is not None and location.index and not location.allow:
        # Look up directories, because a rule may allow their index file.
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
    """Return the directives for the paths of a location, or for those that match its rule."""
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
        # A directory without an index, an unreadable file, and methods that files do not support.
        lines.append(f"error_page 403 404 405 = {otherwise};")
    expires = location.expires if rule.expires is None else rule.expires
    headers = location.headers if rule.headers is None else rule.headers
    return "\n".join([*lines, *_headers(expires, headers)])


def _headers(expires: int | str, headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the directives for the headers of files; responses of the application get none."""
    after = seconds(expires)
    if "cache-control" not in {name.lower() for name in headers}:
        # By default files are not cached, for which nginx sends `no-cache`.
        yield f"expires {after if after < 0 else f'{after}s'};"
    for name, value in headers.items():
        match name.lower():
            case "content-type":  # add_header would add a second Content-Type
                yield f"types {{ }} default_type {quoted(value)};"
            case "access-control-allow-origin" if value.strip() == "*":
                yield f"add_header {quoted(name)} $any_origin;"
                yield "add_header Vary Origin;"
            case _:
                yield f"add_header {quoted(name)} {literal(value)};"


def _rewriting(server: dict[str, str], target: str, number: int, expression: str) -> str:
    """Add the block that rewrites a request to another path; return its name.

    If there is no file at that path, the application receives the request, with its query.
    """
    # The target may use the named groups of the expression as variables, and nothing else.
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
