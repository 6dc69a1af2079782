"""A start that fails says why in one sentence, ends with a failure, and leaves no process."""

import asyncio
import time

import httpx
import pytest

from quart_upsun.testing.servers import UPSUN, spawned
from quart_upsun.tests.process.application import NAME, serving

PROCESSES = pytest.mark.parametrize("processes", [1, 2])


async def output_of_a_failure(processes: int, *command: str, **variables: str) -> list[str]:
    """Start what cannot start; return what it says, once every process of it has ended."""
    command = command or (NAME,)
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
        "DATABASE_URL has the parameter keepalives, which is not supported.": {
            "DATABASE_URL": "postgresql://u:hunter2@h/d?keepalives=1"
        },
        "PORT is not valid: ": {"PORT": "http"},
        "HOST is not a host name or an IP address": {"HOST": "a..b"},
        "HOST is not an address of this machine: 192.0.2.1: ": {"HOST": "192.0.2.1"},
        "HOST is not an address of this machine: no-such-host.invalid: ": {
            "HOST": "no-such-host.invalid"
        },
        "MAIL_URL is not of the form ": {"MAIL_URL": "smtp://u:hunter2/x@h"},
        "MAIL_FROM is not one address ": {"MAIL_FROM": "a@b, c@d"},
        "PUBLIC_ORIGIN must be of the form ": {"PUBLIC_ORIGIN": "https://www.example.com:99999"},
        "CORS_ORIGINS must hold origins ": {"CORS_ORIGINS": "https://[::1"},
        "SECRET_KEY is missing or weak: ": {**UPSUN, "SECRET_KEY": "short"},
    }
    outputs = await asyncio.gather(
        *(output_of_a_failure(2, **variables) for variables in wrong.values())
    )
    for sentence, lines in zip(wrong, outputs, strict=True):
        assert len(lines) == 1
        assert lines[0].startswith(sentence)
        assert lines[0].endswith(".")
        assert "hunter2" not in lines[0]


@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_ipv6(host: str) -> None:
    async with spawned(1, NAME, HOST=host) as server:
        port = int((await server.says("starting"))[0]["port"])
        await server.says("serving")
        async with httpx.AsyncClient(base_url=f"http://[::1]:{port}") as client:
            assert (await client.get("/livez")).status_code == 200
        await server.stops()


@PROCESSES
async def test_a_taken_port(processes: int) -> None:
    """Not even two of ours share one by accident: each would get half of the requests."""
    async with serving(processes) as server:
        lines = await output_of_a_failure(processes, PORT=str(server.port))
        assert lines == [f"Cannot listen on 127.0.0.1:{server.port}: Address already in use."]
        await server.stops()


@PROCESSES
@pytest.mark.parametrize("behaviour", ["factory-fails", "start-fails"])
async def test_an_application_that_does_not_start(processes: int, behaviour: str) -> None:
    started = time.monotonic()
    lines = await output_of_a_failure(processes, NAME, behaviour)
    assert time.monotonic() - started < 10
    reason = {"factory-fails": "the factory failed", "start-fails": "the start failed"}[behaviour]
    assert reason in "\n".join(lines)
    assert not any('"serving"' in line for line in lines)
