"""A start that fails says why in one sentence, ends with a failure, and leaves no process."""

import asyncio
import time

import pytest

from tests.process.servers import UPSUN, serving, spawned

PROCESSES = pytest.mark.parametrize("processes", [1, 2])


async def output_of_a_failure(processes: int, *command: str, **variables: str) -> list[str]:
    """Start what cannot start; return what it says, once every process of it has ended."""
    command = command or ("app.server",)
    async with spawned(processes, *command, **variables) as server:
        assert await server.ended(30) == 1, server.output
        return list(server.lines)


async def test_wrong_settings() -> None:
    wrong = {
        "WEB_CONCURRENCY is not valid: ": {"WEB_CONCURRENCY": "abc"},
        "DATABASE_URL must begin with postgresql://, not mysql://.": {
            "DATABASE_URL": "mysql://x/y"
        },
        "DATABASE_URL is not of the form ": {"DATABASE_URL": "nothing of the kind"},
        "DATABASE_URL is not set.": {"DATABASE_URL": ""},
        "PORT is not valid: ": {"PORT": "http"},
        "SECRET_KEY is missing or weak: ": {**UPSUN, "SECRET_KEY": "short"},
    }
    outputs = await asyncio.gather(
        *(output_of_a_failure(2, **variables) for variables in wrong.values())
    )
    for sentence, lines in zip(wrong, outputs, strict=True):
        assert len(lines) == 1
        assert lines[0].startswith(sentence)
        assert lines[0].endswith(".")


@PROCESSES
async def test_a_taken_port(processes: int) -> None:
    """Not even two of ours share one by accident: each would get half of the requests."""
    async with serving(processes, "app.server") as server:
        lines = await output_of_a_failure(processes, PORT=str(server.port))
        assert lines == [f"Cannot listen on 127.0.0.1:{server.port}: Address already in use."]
        await server.stops()


@PROCESSES
@pytest.mark.parametrize("behaviour", ["factory-fails", "start-fails"])
async def test_an_application_that_does_not_start(processes: int, behaviour: str) -> None:
    started = time.monotonic()
    lines = await output_of_a_failure(processes, "tests.process.application", behaviour)
    assert time.monotonic() - started < 10
    reason = {"factory-fails": "the factory failed", "start-fails": "the start failed"}[behaviour]
    assert reason in "\n".join(lines)
    assert not any('"serving"' in line for line in lines)
