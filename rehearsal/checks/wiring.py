"""What leads where: relationships to services, routes to applications."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rehearsal.checks.context import Context
from rehearsal.findings import Finding, Severity

# Endpoints that a service has without being told.
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
                        f"leads to `{target}`, which is not defined",
                        "the platform rejects the push",
                        f"define a service `{target}` under `services`",
                    )
            elif target and isinstance(application.relationships[name], str) and not endpoint:
                yield context.find(
                    place,
                    "names no endpoint",
                    "the platform may not know what is meant",
                    f'write "{target}:{service.kind.partition("-")[0]}"',
                    Severity.WARNING,
                )
            elif endpoint and (known := _endpoints(context, target)) and endpoint not in known:
                yield context.find(
                    place,
                    f"leads to the endpoint `{endpoint}`, which `{target}` does not have",
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
                "defines DATABASE_URL by itself",
                "it begins with pgsql://, which SQLAlchemy and others do not know",
                "call the relationship `postgresql`",
                Severity.WARNING,
            )


def check_unused_services(context: Context) -> Iterator[Finding]:
    raw = context.configuration.raw
    used = {
        target
        for _, _, application in context.applications()
        for target, _ in application.endpoints().values()
    }
    # Workers, services and mounts have some of their own, which the model does not hold.
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
                "it runs and costs, and no application can reach it",
                "add a relationship, or delete the service",
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
                "names no `upstream`",
                "the platform does not know which application answers there",
                f'write `upstream: "{next(iter(configuration.applications))}:http"`',
            )
        elif route.application not in configuration.applications:
            yield context.find(
                ("routes", url, "upstream"),
                f"leads to the application `{route.application}`, which is not defined",
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
                ("routes", url), "names no `to`", "the platform rejects the push", "say where to"
            )
        elif any(_address(route.to).startswith(address) for address in known):
            continue
        elif "{" in route.to:
            yield context.find(
                ("routes", url, "to"),
                f"leads to {route.to}, which is no route",
                "visitors are sent to a page that nobody answers",
                f"define the route {route.to}, or use one that is there",
            )
        else:
            yield context.find(
                ("routes", url, "to"),
                f"leads to {route.to}, outside of this project",
                "visitors of every environment, previews included, are sent there",
                "see that this is meant",
                Severity.WARNING,
            )


def check_any_route(context: Context) -> Iterator[Finding]:
    if not context.configuration.routes:
        name = next(iter(context.configuration.applications))
        yield context.find(
            ("routes",),
            "leads to no application: the file defines no route",
            "which URL reaches which application is left to the platform",
            f'define "https://{{default}}/" with `upstream: "{name}:http"`',
            Severity.WARNING,
        )


def _endpoints(context: Context, name: str) -> set[str]:
    """Return the endpoints of a service; none where they are not known."""
    raw = context.configuration.raw["services"][name]
    configuration = raw.get("configuration")
    if isinstance(configuration, Mapping) and "endpoints" in configuration:
        own = configuration["endpoints"]
        return set(map(str, own)) if isinstance(own, Mapping) else set()
    return ENDPOINTS.get(context.configuration.services[name].kind, set())


def _mappings(value: Any) -> list[Mapping[Any, Any]]:
    """Return the members that are mappings, of a mapping."""
    members = value.values() if isinstance(value, Mapping) else ()
    return [member for member in members if isinstance(member, Mapping)]


def _address(url: str) -> str:
    """Return a URL without scheme and with a slash behind, to be compared."""
    text = re.sub(r"^https?://", "", url)
    return text if text.endswith("/") else f"{text}/"
