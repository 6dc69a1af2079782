"""Checks of relationships to services and of routes to applications."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rehearsal import knowledge
from rehearsal.checks.context import Context
from rehearsal.checks.form import members
from rehearsal.configuration import REJECTED
from rehearsal.findings import Finding, Severity
from rehearsal.shapes import Keys, Unread, did_you_mean

# Of applications, whatever their runtime.
APPLICATION_ENDPOINTS = {"http", "php"}


def check_names(context: Context) -> Iterator[Finding]:
    for name in sorted(
        context.configuration.names("applications") & context.configuration.names("services")
    ):
        yield context.find(
            ("services", name),
            "has the same name as an application",
            REJECTED,
            "rename one of them",
            Severity.ERROR,
        )


def check_relationships(context: Context) -> Iterator[Finding]:
    for keys, relationships in _relationships(context):
        for name, value in relationships.items():
            if isinstance(value, Unread) or not isinstance(value, (str, Mapping, type(None))):
                continue
            target, endpoint = target_of(str(name), value)
            yield from _judge(context, (*keys, str(name)), value, target, endpoint)


def _judge(
    context: Context, place: Keys, value: object, target: str, endpoint: str
) -> Iterator[Finding]:
    """Check the target and the endpoint of one relationship."""
    applications = context.configuration.names("applications")
    services = context.configuration.names("services")
    if target not in applications | services:
        yield context.find(
            place,
            f"refers to `{target}`, which is neither a service nor an application",
            REJECTED,
            did_you_mean(target, services | applications)
            or f"define `{target}` under `services`, or use a name that is defined there",
            Severity.ERROR,
        )
        return
    known = APPLICATION_ENDPOINTS if target in applications else _endpoints(context, target)
    if not endpoint:
        if target in applications:
            yield context.find(
                place,
                f"has no endpoint, and the application `{target}` has no default endpoint",
                "the platform may not be able to resolve the relationship",
                f'write "{target}:http"',
            )
        elif isinstance(value, str):
            yield context.find(
                place,
                "has no endpoint",
                "the platform may not be able to resolve the relationship",
                f'write "{target}:{min(known, default="ENDPOINT")}"',
            )
    elif known and endpoint not in known:
        yield context.find(
            place,
            f"refers to the endpoint `{endpoint}`, which `{target}` does not have",
            REJECTED,
            did_you_mean(endpoint, known) or f'write "{target}:{min(known)}"',
            Severity.ERROR,
        )


def check_circles(context: Context) -> Iterator[Finding]:
    """Find relationships that close a circle; the documentation says that there must be none."""
    targets: dict[str, set[str]] = {}
    for keys, relationships in _relationships(context):
        owner = keys[1]
        for name, value in relationships.items():
            if not isinstance(value, (str, Mapping, type(None))):
                continue
            target, _ = target_of(str(name), value)
            circle = _path(targets, target, owner)
            if circle and target != owner:
                yield context.find(
                    (*keys, str(name)),
                    f"closes a circle of relationships: {' → '.join([owner, *circle])}",
                    REJECTED,
                    f"remove it, or the relationship from `{target}` to `{circle[1]}`; data that"
                    " goes both ways can be in a service that both use",
                    Severity.ERROR,
                )
            targets.setdefault(owner, set()).add(target)


def _path(targets: Mapping[str, set[str]], start: str, end: str) -> list[str]:
    """Return the names on a way from one to another; empty if there is none."""
    ways = [[start]]
    seen = {start}
    for way in ways:
        if way[-1] == end:
            return way
        for target in sorted(targets.get(way[-1], set()) - seen):
            seen.add(target)
            ways.append([*way, target])
    return []


def check_database_url(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        service = context.configuration.services.get(
            application.endpoints().get("database", ("", ""))[0]
        )
        if service and service.kind.startswith("postgresql"):
            yield context.find(
                (*keys, "relationships", "database"),
                "makes the platform define DATABASE_URL",
                "the URL starts with pgsql://, which SQLAlchemy and other libraries do not accept",
                "rename the relationship to `postgresql`",
            )


def check_unused_services(context: Context) -> Iterator[Finding]:
    raw = context.configuration.raw
    used = {
        target_of(str(name), value)[0]
        for _, relationships in _relationships(context)
        for name, value in relationships.items()
    }
    used |= {str(route.get("upstream")).partition(":")[0] for route in _mappings(raw.get("routes"))}
    for application in _mappings(raw.get("applications")):
        for owner in (application, *_mappings(application.get("workers"))):
            used |= {str(mount.get("service")) for mount in _mappings(owner.get("mounts"))}
    for name in context.configuration.services:
        if name not in used:
            yield context.find(
                ("services", name),
                "is not used by any relationship",
                "the service runs and is billed, but no application can connect to it",
                "add a relationship, or remove the service",
            )


def check_upstreams(context: Context) -> Iterator[Finding]:
    applications = context.configuration.names("applications")
    services = context.configuration.names("services")
    for url, route in context.configuration.routes.items():
        keys = ("routes", url)
        if url not in context.configuration.names("routes"):
            continue  # the default route
        if "type" not in context.raw(keys):
            yield context.find(
                keys,
                "has no `type`",
                "`upsun validate` rejects it",
                f"add `type: {'redirect' if route.to else 'upstream'}`",
            )
        if route.type != "upstream":
            continue
        name, _, endpoint = (route.upstream or "").partition(":")
        if not name:
            if "upstream" not in context.raw(keys):
                yield context.find(
                    keys,
                    "has no `upstream`",
                    REJECTED,
                    f'add `upstream: "{next(iter(context.configuration.applications))}:http"`',
                    Severity.ERROR,
                )
        elif name not in applications | services:
            yield context.find(
                (*keys, "upstream"),
                f"refers to `{name}`, which is neither an application nor a service",
                REJECTED,
                did_you_mean(name, applications) or f"use one of: {', '.join(applications)}",
                Severity.ERROR,
            )
        elif not endpoint:
            yield context.find(
                (*keys, "upstream"),
                "has no endpoint",
                "the documentation requires one",
                f'write "{name}:http"',
            )
        elif name in applications and endpoint not in APPLICATION_ENDPOINTS:
            yield context.find(
                (*keys, "upstream"),
                f"refers to the endpoint `{endpoint}`, which applications do not have",
                REJECTED,
                f'write "{name}:http"',
                Severity.ERROR,
            )


def check_primary(context: Context) -> Iterator[Finding]:
    primary = [url for url, route in context.configuration.routes.items() if route.primary]
    for url in primary[1:]:
        yield context.find(
            ("routes", url, "primary"),
            f"is true, but {primary[0]} is the primary route already",
            REJECTED,
            "set it for one route only",
            Severity.ERROR,
        )


def check_redirects(context: Context) -> Iterator[Finding]:
    routes = context.configuration.routes
    known = [_address(url) for url in routes]
    for url, route in routes.items():
        if route.type == "upstream":
            continue
        if not route.to:
            yield context.find(
                ("routes", url),
                "has no `to`",
                REJECTED,
                'add `to` with the target URL, such as `to: "https://{default}/"`',
                Severity.ERROR,
            )
        elif route.type == "proxy" or any(
            _address(route.to).startswith(address) for address in known
        ):
            continue
        elif "{" in route.to:
            yield context.find(
                ("routes", url, "to"),
                f"redirects to {route.to}, which is not a route",
                "visitors are redirected to a URL that does not exist",
                f"define the route {route.to}, or redirect to an existing route",
            )
        else:
            yield context.find(
                ("routes", url, "to"),
                f"redirects to {route.to}, outside this project",
                "every environment, including previews, redirects visitors to that URL",
                "make sure that this is intended",
            )


def check_any_route(context: Context) -> Iterator[Finding]:
    # With one application, the platform adds the route itself.
    if len(context.configuration.applications) > 1 and not context.configuration.names("routes"):
        name = next(iter(context.configuration.applications))
        yield context.find(
            ("routes",),
            "has no routes",
            "the platform chooses which application serves requests",
            f'add "https://{{default}}/" with `upstream: "{name}:http"`',
        )


def target_of(name: str, value: object) -> tuple[str, str]:
    """Return the service and the endpoint of a relationship; "" for the default endpoint."""
    if isinstance(value, Mapping):
        return str(value.get("service") or name), str(value.get("endpoint") or "")
    service, _, endpoint = str(value or name).partition(":")
    return service, endpoint


def _relationships(context: Context) -> Iterator[tuple[Keys, Mapping[Any, Any]]]:
    """Yield the relationships of applications, of workers and web instances, and of services."""
    raw = dict(context.configuration.raw)
    for path in (
        ("applications",),
        ("applications", "workers"),
        ("services",),
    ):
        for keys, owner in members(raw, path):
            relationships = owner.get("relationships") if isinstance(owner, Mapping) else None
            if isinstance(relationships, Mapping):
                yield (*keys, "relationships"), relationships


def _endpoints(context: Context, name: str) -> set[str]:
    """Return the endpoints of a service; empty if they are unknown."""
    raw = context.raw(("services", name))
    configuration = raw.get("configuration")
    if isinstance(configuration, Unread):
        return set()
    if isinstance(configuration, Mapping) and "endpoints" in configuration:
        own = configuration["endpoints"]
        return set(map(str, own)) if isinstance(own, Mapping) else set()
    image = knowledge.SERVICES.get(str(raw.get("type")).partition(":")[0])
    return set(image.endpoints) if image else set()


def _mappings(value: Any) -> list[Mapping[Any, Any]]:
    """Return those members of a mapping that are mappings themselves."""
    members = value.values() if isinstance(value, Mapping) else ()
    return [member for member in members if isinstance(member, Mapping)]


def _address(url: str) -> str:
    """Return a URL without its scheme and with a trailing slash, for comparison."""
    text = re.sub(r"^https?://", "", url)
    return text if text.endswith("/") else f"{text}/"
