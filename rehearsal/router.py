"""Generate nginx's configuration for the platform's router: hosts, redirects, cache, headers.

The router accepts plain HTTP, and tells the application that the request used HTTPS, as on the
platform.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from rehearsal.configuration import Cache, Redirect, Redirects, Route
from rehearsal.web_server import http, literal, preamble, quoted, seconds

# Requests that are held for longer time out.
HOLD_SECONDS = 300
MAX_REQUEST = "250m"

# The documented variables in the target of a redirect with a regular expression.
VARIABLES = r"\$(?:(\d)|(is_args|args|arg_\w+)\b|(uri)\b)"


@dataclass(frozen=True)
class _Target:
    """A route, with its host and path."""

    key: str
    """The URL as in the configuration."""
    host: str
    """The host name, such as `www.example.com`; its first label may be `*`."""
    path: str
    """The path without leading and trailing slashes; "" for all paths."""
    route: Route


class Page(NamedTuple):
    """A page of the application, as a visitor requests it."""

    host: str
    path: str


def entrances(routes: Mapping[str, Route], application: str, domain: str) -> list[Page]:
    """Return the URL of each of an application's routes, those of the default host first."""
    targets = _targets(routes, domain)
    default = _default(targets, application)
    return [
        # For a wildcard, any host.
        Page(target.host.replace("*", "www", 1), f"/{target.path}/" if target.path else "/")
        for target in sorted(targets, key=lambda target: target.host != default)
        if target.route.type == "upstream" and target.route.application == application
    ]


def configuration(
    routes: Mapping[str, Route],
    *,
    application: str,
    domain: str,
    port: int,
    held: int,
    direct: int,
    scratch: str,
    others: Mapping[str, tuple[int, int]] | None = None,
) -> str:
    """Return nginx's configuration.

    Args:
        routes: the routes, by their URL in the configuration.
        application: the application that serves requests for unknown hosts.
        domain: the value of `{default}` and `{all}`.
        port: the port to listen on, on 127.0.0.1.
        held: the gate's port for requests that a deploy holds.
        direct: the gate's port for requests that it does not hold.
        scratch: a directory that nginx may write to.
        others: the ports of the gates of other applications, held and direct. Routes to any other
            application respond with 502.

    Raises:
        ValueError: a duration is invalid; the message quotes it.
    """
    targets = _targets(routes, domain)
    default = _default(targets, application)
    # The default host also serves requests for unknown hosts, such as 127.0.0.1:8000.
    hosts = sorted({target.host for target in targets}, key=lambda host: host != default)
    gates = {application: (held, direct), **(others or {})}
    variables = {name: f"$gate_{number}" for number, name in enumerate(gates)}
    maps = [_gate(variables[name], *ports) for name, ports in gates.items()]
    servers = []
    for host in hosts:
        blocks = [
            _route(target, variables, domain, maps) for target in targets if target.host == host
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

# The path as the client sent it: decoded characters must not get into a header.
map $request_uri $path {{ "~^(?<as_written>[^?]*)" $as_written; }}

# Any cookie: nginx's conditions treat a header of 0 as false.
map $http_cookie $any_cookie {{ "" ""; default yes; }}

# A Cache-Control header without a max-age is not cached; nginx would use the default TTL.
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
# Only Cache-Control decides about caching.
proxy_ignore_headers Expires X-Accel-Expires X-Accel-Redirect;
proxy_cache_revalidate on;

{written_servers}
}}
"""


def _gate(variable: str, held: int, direct: int) -> str:
    """Return the map that sends idempotent requests where a deploy holds them."""
    return (
        f"map $request_method {variable} {{ default 127.0.0.1:{direct};"
        f' "~^(GET|HEAD|PUT|DELETE|OPTIONS)$" 127.0.0.1:{held}; }}'
    )


def _cache(scratch: str) -> Path:
    return Path(scratch, "cache")


def _filled(text: str, domain: str) -> str:
    return text.replace("{default}", domain).replace("{all}", domain)


def _targets(routes: Mapping[str, Route], domain: str) -> list[_Target]:
    """Return one target per host and path; an HTTPS route takes precedence over an HTTP one."""
    found: dict[tuple[str, str], _Target] = {}
    for key, route in sorted(routes.items(), key=lambda item: item[0].startswith("http://")):
        url = urlsplit(_filled(key, domain))
        target = _Target(key, url.netloc.lower(), url.path.strip("/"), route)
        found.setdefault((target.host, target.path), target)
    order = list(routes)
    return sorted(found.values(), key=lambda target: order.index(target.key))


def _default(targets: list[_Target], application: str) -> str:
    """Return the host that serves requests for unknown hosts."""
    for candidates in (
        [target for target in targets if target.route.primary],
        [target for target in targets if target.route.application == application],
        targets,
    ):
        if candidates:
            return candidates[0].host
    return ""


def _route(target: _Target, gates: Mapping[str, str], domain: str, maps: list[str]) -> str:
    route = target.route
    if route.type == "redirect":
        handling = _redirect(target, domain)
    elif route.type == "upstream" and route.application in gates:
        handling = _upstream(target, gates[route.application], maps)
    else:
        text = f"The route {target.key} is not supported by the rehearsal.\n"
        handling = f"default_type text/plain; return 502 {literal(text)};"
    inner = "\n".join([*_partial_redirects(target, domain), handling])
    blocks = f"location {quoted(f'/{target.path}/' if target.path else '/')} {{ {inner} }}"
    if target.path:
        blocks += f"\nlocation = {quoted(f'/{target.path}')} {{ {inner} }}"
    return blocks


def _redirect(target: _Target, domain: str) -> str:
    """Return the redirect of a whole route, which keeps the rest of the path."""
    to = literal(_filled(target.route.to or "/", domain).rstrip("/"))[:-1]  # without the quote
    if not target.path:
        return f'return 301 {to}$request_uri";'
    expression = f"^/{re.escape(target.path)}(?<rest>.*)$"
    return f'if ($request_uri ~ {quoted(expression)}) {{ return 301 {to}$rest"; }}'


def _partial_redirects(target: _Target, domain: str) -> list[str]:
    """Return the redirects of individual paths.

    The documentation defines the short forms by regular expressions, and so does this function.
    The query is not kept; the documentation has `$is_args$args` for that. It does not define the
    order of several matching redirects: here, longer paths come first and expressions last.
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
    # A redirect to the same host must stay on 127.0.0.1.
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


def _upstream(target: _Target, gate: str, maps: list[str]) -> str:
    # For a wildcard host, nginx knows which host was requested.
    host = "$host" if target.host.startswith("*") else literal(target.host)[1:-1]
    pattern = "[^/]+" if target.host.startswith("*") else re.escape(target.host)
    location = quoted(f"~*^https://{pattern}(?=[/?#]|$)(.*)$")
    return f"""
proxy_pass http://{gate};
proxy_set_header Host "{host}";
proxy_set_header Connection $connection_header;
proxy_set_header Upgrade $upgrade_header;
proxy_set_header X-Client-IP $remote_addr;
proxy_set_header X-Client-SSL on;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
proxy_set_header X-Forwarded-Proto https;
proxy_set_header X-Original-Route {literal(target.key)};
# What the platform knows about the client, here with values that are reserved for examples.
proxy_set_header Client-Country ZZ;
proxy_set_header Client-Asn 64496;
proxy_set_header Client-Abuse-Score 0;
proxy_set_header Client-Cdn "";
# Redirects to the same host must stay on 127.0.0.1.
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
        # The value of the cookie is part of the cache key. If a regular expression matches, all
        # cookies are: this separates more responses than on the platform, but never mixes them up.
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
    """Return an expression that matches a Cookie header if a cookie's name matches."""
    begin = r"(?:^|;\s*)" if expression.startswith("^") else r"(?:^|;\s*)[^=;]*?"
    expression = expression.removeprefix("^")
    if expression.endswith("$") and not expression.endswith(r"\$"):
        return f"{begin}(?:{expression[:-1]})="
    return f"{begin}(?:{expression})[^=;]*="
