"""Failing starts: one line says why, the exit code is 1, and no process is left."""

import asyncio

import httpx
import pytest

from quart_upsun.testing.servers import UPSUN, spawned
from quart_upsun.tests.process.application import NAME, serving

PROCESSES = pytest.mark.parametrize("processes", [1, 2])


async def failing_output(processes: int, *command: str, **variables: str) -> list[str]:
    """Start a server that fails, and return its output once all its processes have ended."""
    command = command or (NAME,)
    async with spawned(processes, *command, **variables) as server:
        assert await server.wait_for_exit(30) == 1, server.output
        return list(server.lines)


async def test_invalid_settings_exit_with_one_line() -> None:
    invalid = {
        "WEB_CONCURRENCY must be a whole number.": {"WEB_CONCURRENCY": "abc"},
        "DATABASE_URL must start with postgresql://, got mysql://.": {
            "DATABASE_URL": "mysql://x/y"
        },
        "DATABASE_URL is malformed. ": {"DATABASE_URL": "not a URL"},
        "DATABASE_URL is not set.": {"DATABASE_URL": ""},
        "DATABASE_URL has the unsupported parameter keepalives. ": {
            "DATABASE_URL": "postgresql://u:hunter2@h/d?keepalives=1"
        },
        "PORT must be a whole number.": {"PORT": "http"},
        "HOST is not a host name or an IP address": {"HOST": "a..b"},
        "HOST=192.0.2.1 is not an address of this machine: ": {"HOST": "192.0.2.1"},
        "HOST=no-such-host.invalid is not an address of this machine: ": {
            "HOST": "no-such-host.invalid"
        },
        "MAIL_URL is malformed. ": {"MAIL_URL": "smtp://u:hunter2/x@h"},
        "MAIL_FROM is not an email address. ": {"MAIL_FROM": "a@b, c@d"},
        "PUBLIC_ORIGIN is not an origin. ": {"PUBLIC_ORIGIN": "https://www.example.com:99999"},
        "CORS_ORIGINS contains an invalid origin. ": {"CORS_ORIGINS": "https://[::1"},
        "SECRET_KEY is missing or weak. ": {**UPSUN, "SECRET_KEY": "short"},
    }
    outputs = await asyncio.gather(
        *(failing_output(2, **variables) for variables in invalid.values())
    )
    for sentence, lines in zip(invalid, outputs, strict=True):
        assert len(lines) == 1
        assert lines[0].startswith(sentence)
        assert lines[0].endswith(".")
        assert "hunter2" not in lines[0]


@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_listens_on_ipv6(host: str) -> None:
    async with spawned(1, NAME, HOST=host) as server:
        port = int((await server.wait_for_event("server starting"))[0]["port"])
        await server.wait_for_event("server ready")
        async with httpx.AsyncClient(base_url=f"http://[::1]:{port}") as client:
            assert (await client.get("/livez")).status_code == 200
        await server.stop_cleanly()


@PROCESSES
async def test_a_port_in_use_is_an_error(processes: int) -> None:
    """Two servers must not share a port by accident: each would get half of the requests."""
    async with serving(processes) as server:
        lines = await failing_output(processes, PORT=str(server.port))
        assert lines == [f"Cannot listen on 127.0.0.1:{server.port}: Address already in use."]
        await server.stop_cleanly()


@PROCESSES
@pytest.mark.parametrize("behaviour", ["factory-fails", "start-fails"])
async def test_exits_when_the_application_fails_to_start(processes: int, behaviour: str) -> None:
    lines = await failing_output(processes, NAME, behaviour)
    reason = {"factory-fails": "the factory failed", "start-fails": "the start failed"}[behaviour]
    assert reason in "\n".join(lines)
    assert not any('"server ready"' in line for line in lines)
