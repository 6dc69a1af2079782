"""Checks of runtimes, services, their versions, and container profiles."""

from collections.abc import Iterator, Mapping
from typing import Any

from rehearsal import knowledge
from rehearsal.checks.context import Context
from rehearsal.configuration import REJECTED
from rehearsal.findings import Finding, Severity
from rehearsal.knowledge import Image
from rehearsal.shapes import Keys, did_you_mean

UPDATES = "it gets no security updates and will be removed"


def check_runtime(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        raw = context.raw(keys)
        stack = raw.get("stack")
        place = (*keys, "type")
        if application.type:
            if isinstance(raw.get("type"), str):  # otherwise it is reported as a wrong value
                yield from _judge(
                    context, place, application.type, knowledge.RUNTIMES, knowledge.SERVICES
                )
            kind = application.type.partition(":")[0]
            if stack is not None and kind != "composable":
                channel = next(iter(knowledge.RUNTIMES["composable"].supported))
                yield context.find(
                    (*keys, "stack"),
                    f"is used with the type `{application.type}`",
                    "only composable images have a stack",
                    f"use `type: composable:{channel}`, or remove `stack`",
                )
        elif stack is None and raw.get("type") is None:
            yield context.find(
                keys,
                "has no `type`",
                REJECTED,
                "add the runtime and its version, such as `type: python:3.13`",
                Severity.ERROR,
            )
        if stack is not None:
            yield from _check_stack(context, (*keys, "stack"), stack)


def check_services(context: Context) -> Iterator[Finding]:
    for name, service in context.configuration.services.items():
        yield from _judge(
            context,
            ("services", name, "type"),
            service.type,
            knowledge.SERVICES,
            knowledge.RUNTIMES,
        )


def _judge(
    context: Context,
    keys: Keys,
    text: str,
    known: Mapping[str, Image],
    elsewhere: Mapping[str, Image],
) -> Iterator[Finding]:
    """Check a type such as `python:3.13`."""
    name, _, version = text.partition(":")
    what = "runtime" if known is knowledge.RUNTIMES else "service"
    image = known.get(name)
    if image is None:
        if name in elsewhere:
            problem = f"is `{text}`, which is not a {what}"
            other = "services" if what == "runtime" else "applications"
            fix = f"move it to `{other}`"
        else:
            problem = f"is `{text}`; the {what} `{name}` is unknown"
            fix = did_you_mean(name, known) or f"use one of: {', '.join(known)}"
            if "@" in name:
                fix = f"write `{name.replace('@', ':')}`"
        yield _unknown(context, keys, problem, fix)
        return
    newest = image.versions()
    example = f"write `{name}:{newest[0]}`" if newest else ""
    if not newest:
        return
    if not version:
        yield context.find(
            keys, f"has no version for {name}", REJECTED, example, severity=Severity.ERROR
        )
    elif version in image.supported:
        return
    elif version in image.deprecated or version in image.retired.split():
        status = "deprecated" if version in image.deprecated else "retired"
        supported = ", ".join(image.supported)
        yield context.find(
            keys, f"is {name} {version}, which is {status}", UPDATES, f"use one of: {supported}"
        )
    elif version in image.removed.split():
        yield context.find(
            keys, f"is {name} {version}, which was removed", REJECTED, example, Severity.ERROR
        )
    else:
        fix = f"use one of: {', '.join([*image.supported, *image.deprecated])}"
        yield _unknown(context, keys, f"is {name} {version}, which does not exist", fix)


def _unknown(context: Context, keys: Keys, problem: str, fix: str) -> Finding:
    """Return an error, or a warning if the tables are too old to be sure."""
    known = knowledge.scope()
    if knowledge.is_recent():
        return context.find(keys, problem, f"{REJECTED}; {known}", fix, Severity.ERROR)
    return context.find(keys, problem, known, fix)


def _check_stack(context: Context, keys: Keys, stack: Any) -> Iterator[Finding]:
    runtimes = stack.get("runtimes") if isinstance(stack, dict) else stack
    if isinstance(stack, dict):
        for key in stack:
            if key not in {"runtimes", "packages"}:
                fix = did_you_mean(str(key), ("runtimes", "packages"))
                yield context.find((*keys, str(key)), "is an unknown key of a stack", "", fix)
    for number, item in enumerate(runtimes if isinstance(runtimes, list) else ()):
        for text in item if isinstance(item, dict) else [item]:
            name, _, version = str(text).replace(":", "@").partition("@")
            if isinstance(stack, dict) and name not in knowledge.STACKS:
                yield context.find(
                    (*keys, "runtimes", str(number)),
                    f"is `{text}`, which is not a supported runtime of composable images",
                    knowledge.scope(),
                    did_you_mean(name, knowledge.STACKS) or "move it to `packages`",
                )
            elif name in knowledge.STACKS and version:
                versions = knowledge.STACKS[name].split()
                if version not in versions and version not in {v.split(".")[0] for v in versions}:
                    place = (*keys, "runtimes", str(number)) if isinstance(stack, dict) else keys
                    yield context.find(
                        place,
                        f"is `{text}`, which may not exist in this Nix channel",
                        knowledge.scope(),
                        f"use one of: {', '.join(versions)}",
                    )


def check_profile(context: Context) -> Iterator[Finding]:
    profile = knowledge.DEFAULT_PROFILE
    for keys, _, application in context.applications():
        if application.type.startswith("python:") and not application.container_profile:
            yield context.find(
                keys,
                "has no `container_profile`",
                f"the container gets {profile}: {knowledge.default_memory(profile)} MB of memory at"
                f" first, {min(knowledge.SIZES[profile].values())} MB in the smallest size",
                "add `container_profile: BALANCED`",
            )


def check_timezone(context: Context) -> Iterator[Finding]:
    import zoneinfo

    for keys, _, application in context.applications():
        zone = application.timezone
        if not zone:
            continue
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            if not zoneinfo.available_timezones():  # no time zone database on this machine
                return
            zones = zoneinfo.available_timezones()
            yield context.find(
                (*keys, "timezone"),
                f"is `{zone}`, which is not a time zone",
                REJECTED,
                did_you_mean(zone, zones) or "use a name such as `Europe/Paris` or `UTC`",
                Severity.ERROR,
            )
