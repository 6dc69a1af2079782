"""The platform's router, as nginx: hosts, redirects, cache, and what it says of the client.

It speaks plain HTTP, and says to the application that it was HTTPS, as it is on the platform.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rehearsal.configuration import Cache, Redirect, Redirects, Route
from rehearsal.web_server import http, literal, preamble, quoted, seconds

# A deploy that holds requests for longer than this loses them.
HOLD_SECONDS = 300
MAX_REQUEST = "250m"

# The documented variables in the target of a redirect by expression.
VARIABLES = r"\$(?:(\d)|(is_args|args|arg_\w+)\b|(uri)\b)"


@dataclass(frozen=True)
class _Target:
    """A route, and the part of the web that it answers."""

    key: str
    """As the file writes it."""
    host: str
    """Such as `www.rehearsal.example`, or with `*` as its first label."""
    path: str
    """Without slashes around; "" for all."""
    route: Route


def configuration(
    routes: Mapping[str, Route],
    *,
    application: str,
    domain: str,
    port: int,
    held: int,
    direct: int,
    scratch: str,
) -> str:
    """Return nginx's configuration.

    Args:
        routes: by URL, as the file writes them.
        application: the only one that runs; other ones are answered for with 502.
        domain: what `{default}` and `{all}` stand for.
        port: it listens there, on 127.0.0.1.
        held: requests that a deploy holds go to this port.
        direct: those that it does not, to this one.
        scratch: a directory that nginx may write to.

    Raises:
        ValueError: a time is none; the message says which.
    """
    targets = _targets(routes, domain)
    default = _default(targets, application)
    # The default comes first and also takes what belongs to nobody, such as 127.0.0.1:8000.
    hosts = sorted({target.host for target in targets}, key=lambda host: host != default)
    maps: list[str] = []
    servers = []
    for host in hosts:
        blocks = [
            _route(target, application, domain, maps) for target in targets if target.host == host
        ]
        if not any(target.path == "" for target in targets if target.host == host):
            blocks.append("location / { return 404; }")
        servers.append(
            "\n".join(
                [
                    "server {",
                    f"listen 127.0.0.1:{port}{' default_server' if host == default else ''};",
                    f"server_name {quoted(host)};",
                    *blocks,
                    "}",
                ]
            )
        )
    if not servers:
        servers.append(f"server {{ listen 127.0.0.1:{port}; return 404; }}")
    written_maps, written_servers = "\n".join(maps), "\n".join(servers)
    return f"""
{preamble(scratch)}

http {{
{http(scratch)}
proxy_cache_path {quoted(str(_cache(scratch)))} levels=1:2 keys_zone=answers:4m inactive=1d
    max_size=256m use_temp_path=off;

# Idempotent requests are held during a deploy.
map $request_method $gate {{
    default 127.0.0.1:{direct};
    "~^(GET|HEAD|PUT|DELETE|OPTIONS)$" 127.0.0.1:{held};
}}

# As the client wrote it: what was decoded must not get into a header.
map $request_uri $path {{ "~^(?<as_written>[^?]*)" $as_written; }}

# Any cookie, also one that is called 0.
map $http_cookie $any_cookie {{ "" ""; default yes; }}

# Who says something of caching and no time, is not kept; nginx would take the default.
map $upstream_http_cache_control $no_time {{
    "" "";
    "~*(^|[\\s,])(s-maxage|max-age)=" "";
    default yes;
}}

map $upstream_http_set_cookie $not_kept {{ "" MISS; default BYPASS; }}
map $upstream_cache_status $cache_status {{
    HIT HIT;
    REVALIDATED HIT;
    MISS $not_kept;
    EXPIRED $not_kept;
    default BYPASS;
}}

{written_maps}

client_max_body_size {MAX_REQUEST};
proxy_request_buffering on;

proxy_http_version 1.1;
proxy_next_upstream off;
proxy_read_timeout {HOLD_SECONDS}s;
proxy_send_timeout {HOLD_SECONDS}s;
proxy_hide_header X-Accel-Buffering;
# The application's word on caching is Cache-Control.
proxy_ignore_headers Expires X-Accel-Expires X-Accel-Redirect;
proxy_cache_revalidate on;

{written_servers}
}}
"""


def _cache(scratch: str) -> Path:
    return Path(scratch, "cache")


def _filled(text: str, domain: str) -> str:
    return text.replace("{default}", domain).replace("{all}", domain)


def _targets(routes: Mapping[str, Route], domain: str) -> list[_Target]:
    """Return each place once; of two routes to it, that for HTTPS, to which the other leads."""
    found: dict[tuple[str, str], _Target] = {}
    for key, route in sorted(routes.items(), key=lambda item: item[0].startswith("http://")):
        url = urlsplit(_filled(key, domain))
        target = _Target(key, url.netloc.lower(), url.path.strip("/"), route)
        found.setdefault((target.host, target.path), target)
    order = list(routes)
    return sorted(found.values(), key=lambda target: order.index(target.key))


def _default(targets: list[_Target], application: str) -> str:
    """Return the host that takes the requests to other hosts."""
    for candidates in (
        [target for target in targets if target.route.primary],
        [target for target in targets if target.route.application == application],
        targets,
    ):
        if candidates:
            return candidates[0].host
    return ""


def _route(target: _Target, application: str, domain: str, maps: list[str]) -> str:
    route = target.route
    if route.type == "redirect":
        handling = _redirect(target, domain)
    elif route.type == "upstream" and route.application == application:
        handling = _upstream(target, maps)
    else:
        text = f"{target.key} leads to what is not rehearsed.\n"
        handling = f"default_type text/plain; return 502 {literal(text)};"
    inner = "\n".join([*_partial_redirects(target, domain), handling])
    blocks = f"location {quoted(f'/{target.path}/' if target.path else '/')} {{ {inner} }}"
    if target.path:
        blocks += f"\nlocation = {quoted(f'/{target.path}')} {{ {inner} }}"
    return blocks


def _redirect(target: _Target, domain: str) -> str:
    """Return a redirect of all that the route answers; what comes after its path is kept."""
    to = literal(_filled(target.route.to or "/", domain).rstrip("/"))[:-1]  # goes on
    if not target.path:
        return f'return 301 {to}$request_uri";'
    expression = f"^/{re.escape(target.path)}(?<rest>.*)$"
    return f'if ($request_uri ~ {quoted(expression)}) {{ return 301 {to}$rest"; }}'


def _partial_redirects(target: _Target, domain: str) -> list[str]:
    """Return the redirects of single paths.

    The documentation explains the short forms by expressions, so they are expressions here too.
    A query is not carried over: for that it has `$is_args$args`. The order among several that
    match is not documented: longer paths come first, expressions last.
    """
    redirects = target.route.redirects
    paths = sorted(
        redirects.paths.items(),
        key=lambda item: (item[1].regexp, 0 if item[1].regexp else -len(item[0])),
    )
    return [
        _partial_redirect(target, path, redirect, redirects, domain) for path, redirect in paths
    ]


def _partial_redirect(
    target: _Target, path: str, redirect: Redirect, redirects: Redirects, domain: str
) -> str:
    to = _filled(redirect.to, domain)
    # On a laptop it leads to where the client is.
    own = re.match(rf"https://{re.escape(target.host)}(?=[/?#]|$)", to, re.IGNORECASE)
    before = '"'
    if own:
        before, to = '"$scheme://$http_host', to[own.end() :]
    after = '"'
    if redirect.regexp:
        expression = path
        written = ""
        end = 0
        for variable in re.finditer(VARIABLES, to):
            written += literal(to[end : variable.start()])[1:-1]
            number, name, uri = variable.groups()
            written += f"${number}" if number else "$path" if uri else f"${{{name}}}"
            end = variable.end()
        written += literal(to[end:])[1:-1]
    else:
        path = path.rstrip("/")
        expression = (
            f"^{re.escape(path)}(?<rest>/.*|)$"
            if redirect.prefix
            else (f"^{re.escape(path) or '/'}$")
        )
        if redirect.prefix and redirect.append_suffix:
            to, after = to.rstrip("/"), '$rest"'
        written = literal(to)[1:-1]
    expires = redirects.expires if redirect.expires is None else redirect.expires
    after_seconds = seconds(expires)
    caching = f"expires {after_seconds}s;" if after_seconds >= 0 else ""
    return (
        f"if ($path ~ {quoted(expression)}) "
        f"{{ {caching} return {redirect.code} {before}{written}{after}; }}"
    )


def _upstream(target: _Target, maps: list[str]) -> str:
    # nginx has found out the host of a route for many.
    host = "$host" if target.host.startswith("*") else literal(target.host)[1:-1]
    pattern = "[^/]+" if target.host.startswith("*") else re.escape(target.host)
    location = quoted(f"~*^https://{pattern}(?=[/?#]|$)(.*)$")
    return f"""
proxy_pass http://$gate;
proxy_set_header Host "{host}";
proxy_set_header Connection $connection_header;
proxy_set_header Upgrade $upgrade_header;
proxy_set_header X-Client-IP $remote_addr;
proxy_set_header X-Client-SSL on;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
proxy_set_header X-Forwarded-Proto https;
proxy_set_header X-Original-Route {literal(target.key)};
# So that one can follow it on a laptop.
proxy_redirect {location} $scheme://$http_host$1;
add_header X-Platform-Cache $cache_status always;
{_caching(target.route.cache, host, maps)}
"""


def _caching(cache: Cache, host: str, maps: list[str]) -> str:
    if not cache.enabled:
        return "proxy_cache off;"
    key = [f"{host}$request_uri"]
    key += [f"$http_{_variable(name)}" for name in cache.headers]
    bypass = []
    for name in cache.cookies:
        if name == "*":
            bypass = ["$any_cookie"]
            continue
        variable = f"$cookies_{len(maps)}"
        # Only their values count; with an expression it is all cookies as soon as one matches,
        # which keeps more answers apart than the platform does, and mixes none up.
        if len(name) > 1 and name.startswith("/") and name.endswith("/"):
            maps.append(
                f"map $http_cookie {variable} "
                f'{{ default ""; {quoted(f"~{_cookie_expression(name[1:-1])}")} $http_cookie; }}'
            )
        else:
            expression = quoted(rf"~(?:^|;\s*){re.escape(name)}=(?<{variable[1:]}_value>[^;]*)")
            maps.append(
                f'map $http_cookie {variable} {{ default ""; {expression} {variable}_value; }}'
            )
        key.append(variable)
    written = "|".join(key)
    lines = [
        "proxy_cache answers;",
        f'proxy_cache_key "{written}";',
        f"proxy_no_cache $no_time {' '.join(bypass)};",
    ]
    if bypass:
        lines.append(f"proxy_cache_bypass {' '.join(bypass)};")
    if cache.default_ttl > 0:
        lines.append(f"proxy_cache_valid {cache.default_ttl}s;")
    return "\n".join(lines)


def _variable(header: str) -> str:
    return re.sub(r"\W", "_", header, flags=re.ASCII).lower()


def _cookie_expression(expression: str) -> str:
    """Return an expression for all cookies where one's name matches the given one."""
    begin = r"(?:^|;\s*)" if expression.startswith("^") else r"(?:^|;\s*)[^=;]*?"
    expression = expression.removeprefix("^")
    if expression.endswith("$") and not expression.endswith(r"\$"):
        return f"{begin}(?:{expression[:-1]})="
    return f"{begin}(?:{expression})[^=;]*="
