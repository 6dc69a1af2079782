"""Checks of relationships to services and of routes to applications."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rehearsal.checks.context import Context
from rehearsal.findings import Finding, Severity

# The default endpoints of each type of service.
ENDPOINTS = {
    "postgresql": {"postgresql"},
    "redis": {"redis"},
    "redis-persistent": {"redis"},
    "valkey": {"valkey"},
    "valkey-persistent": {"valkey"},
}


def check_relationships(context: Context) -> Iterator[Finding]:
    configuration = context.configuration
    for keys, _, application in context.applications():
        for name, (target, endpoint) in application.endpoints().items():
            place = (*keys, "relationships", name)
            service = configuration.services.get(target)
            if service is None:
                if target not in configuration.applications:
                    yield context.find(
                        place,
                        f"refers to the service `{target}`, which is not defined",
                        "the platform rejects the push",
                        f"define `{target}` under `services`, or use the name of a service there",
                    )
            elif target and isinstance(application.relationships[name], str) and not endpoint:
                yield context.find(
                    place,
                    "has no endpoint",
                    "the platform may not be able to resolve the relationship",
                    f'write "{target}:{service.kind.partition("-")[0]}"',
                    Severity.WARNING,
                )
            elif endpoint and (known := _endpoints(context, target)) and endpoint not in known:
                yield context.find(
                    place,
                    f"refers to the endpoint `{endpoint}`, which `{target}` does not have",
                    "the platform rejects the push",
                    f'write "{target}:{min(known)}"',
                )


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
                Severity.WARNING,
            )


def check_unused_services(context: Context) -> Iterator[Finding]:
    raw = context.configuration.raw
    used = {
        target
        for _, _, application in context.applications()
        for target, _ in application.endpoints().values()
    }
    # Workers, services and mounts refer to services too, and the model does not contain those.
    owners = [*_mappings(raw.get("services"))]
    for application in _mappings(raw.get("applications")):
        owners += [application, *_mappings(application.get("workers"))]
    for owner in owners:
        used |= {str(mount.get("service")) for mount in _mappings(owner.get("mounts"))}
        relationships = owner.get("relationships")
        for name, target in relationships.items() if isinstance(relationships, Mapping) else ():
            service = target.get("service", name) if isinstance(target, Mapping) else target
            used.add(str(service or name).partition(":")[0])
    for name in context.configuration.services:
        if name not in used:
            yield context.find(
                ("services", name),
                "is not used by any relationship",
                "the service runs and is billed, but no application can connect to it",
                "add a relationship, or remove the service",
                Severity.WARNING,
            )


def check_upstreams(context: Context) -> Iterator[Finding]:
    configuration = context.configuration
    for url, route in configuration.routes.items():
        if route.type != "upstream":
            continue
        if not route.application:
            yield context.find(
                ("routes", url),
                "has no `upstream`",
                "the platform does not know which application serves the route",
                f'add `upstream: "{next(iter(configuration.applications))}:http"`',
            )
        elif route.application not in configuration.applications:
            yield context.find(
                ("routes", url, "upstream"),
                f"refers to the application `{route.application}`, which is not defined",
                "the platform rejects the push",
                f"use one of: {', '.join(configuration.applications)}",
            )


def check_redirects(context: Context) -> Iterator[Finding]:
    routes = context.configuration.routes
    known = [_address(url) for url in routes]
    for url, route in routes.items():
        if route.type != "redirect":
            continue
        if not route.to:
            yield context.find(
                ("routes", url),
                "has no `to`",
                "the platform rejects the push",
                'add `to` with the target URL, such as `to: "https://{default}/"`',
            )
        elif any(_address(route.to).startswith(address) for address in known):
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
                Severity.WARNING,
            )


def check_any_route(context: Context) -> Iterator[Finding]:
    if not context.configuration.routes:
        name = next(iter(context.configuration.applications))
        yield context.find(
            ("routes",),
            "has no routes",
            "the platform chooses which application serves which URL",
            f'add "https://{{default}}/" with `upstream: "{name}:http"`',
            Severity.WARNING,
        )


def _endpoints(context: Context, name: str) -> set[str]:
    """Return the endpoints of a service; empty if they are unknown."""
    raw = context.configuration.raw["services"][name]
    configuration = raw.get("configuration")
    if isinstance(configuration, Mapping) and "endpoints" in configuration:
        own = configuration["endpoints"]
        return set(map(str, own)) if isinstance(own, Mapping) else set()
    return ENDPOINTS.get(context.configuration.services[name].kind, set())


def _mappings(value: Any) -> list[Mapping[Any, Any]]:
    """Return those members of a mapping that are mappings themselves."""
    members = value.values() if isinstance(value, Mapping) else ()
    return [member for member in members if isinstance(member, Mapping)]


def _address(url: str) -> str:
    """Return a URL without its scheme and with a trailing slash, for comparison."""
    text = re.sub(r"^https?://", "", url)
    return text if text.endswith("/") else f"{text}/"
