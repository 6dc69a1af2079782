"""Checks of runtime and service versions, and of container profiles."""

import re
from collections.abc import Iterator

from rehearsal.checks.context import Context
from rehearsal.findings import Finding, Severity

Version = tuple[int, ...]

PYTHON = {(3, 13), (3, 14)}
PYTHON_DEPRECATED = {(3, 10), (3, 11), (3, 12)}
# Per service: the oldest and the newest supported version, and deprecated versions.
SERVICES: dict[str, tuple[Version, Version, set[Version]]] = {
    "postgresql": ((14,), (18,), {(9, 6), (10,), (11,), (12,), (13,)}),
    "valkey": ((8, 0), (9, 0), set()),
    "redis": ((7, 2), (8, 8), {(5, 0), (6, 0), (6, 2), (7, 0)}),
}


def check_runtime(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        kind, _, text = application.type.partition(":")
        if not kind and application.stack is None:
            yield context.find(
                keys,
                "has no `type`",
                "the platform does not know which image to build",
                "add `type: python:3.13`",
            )
        elif kind != "python":
            continue
        elif _version(text) in PYTHON_DEPRECATED:
            yield context.find(
                (*keys, "type"),
                f"is Python {text}, which is deprecated",
                "the image gets no security updates and will be removed",
                "use Python 3.13 or 3.14",
                Severity.WARNING,
            )
        elif _version(text) not in PYTHON:
            yield context.find(
                (*keys, "type"),
                f"is Python {text}, which the platform does not support"
                if text
                else "has no Python version",
                "the platform rejects the push",
                "use Python 3.13 or 3.14",
            )


def check_services(context: Context) -> Iterator[Finding]:
    for name, service in context.configuration.services.items():
        kind = re.sub(r"-(persistent|replica)$", "", service.kind)
        if kind not in SERVICES:
            continue
        oldest, newest, deprecated = SERVICES[kind]
        version = _version(service.version)
        if len(version) == len(oldest) and oldest <= version <= newest:
            continue
        fix = f"use a version from {_text(oldest)} to {_text(newest)}"
        if version in deprecated:
            yield context.find(
                ("services", name, "type"),
                f"is {kind} {service.version}, which is deprecated",
                "the service gets no security updates and will be removed",
                fix,
                Severity.WARNING,
            )
        else:
            yield context.find(
                ("services", name, "type"),
                f"is {kind} {service.version}, which the platform does not support"
                if service.version
                else f"has no version for {kind}",
                "the platform rejects the push",
                fix,
            )


def check_profile(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        if application.type.startswith("python:") and not application.container_profile:
            yield context.find(
                keys,
                "has no `container_profile`",
                "the container gets HIGH_CPU: 224 MB of memory at first, 64 MB in a preview",
                "add `container_profile: BALANCED`",
                Severity.WARNING,
            )


def _version(text: str) -> Version:
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+(\.\d+)*", text, re.A) else ()


def _text(version: Version) -> str:
    return ".".join(map(str, version))
