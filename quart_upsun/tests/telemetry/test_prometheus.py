"""`/metrics`: the text format, the token, and the numbers."""

import re
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client

from quart_upsun.jobs.queue import JobContext, Task, enqueue
from quart_upsun.policy import policy_of
from quart_upsun.testing import runner_of
from quart_upsun.tests.sample import Settings, create_app

TOKEN = "a-token-for-tests-only"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"[a-zA-Z_:][a-zA-Z0-9_:]*\{{{LABEL}(?:,{LABEL})*\}} [0-9.e+-]+")
COMMENT = re.compile(r"# (?:HELP [a-z_]+ .+|TYPE [a-z_]+ (?:gauge|histogram))")


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(settings.model_copy(update={"metrics_token": SecretStr(TOKEN)}))
    async with app.test_app():
        yield app


async def scrape(client: Client) -> dict[str, float]:
    """Return the samples by name and labels, without the label of the process."""
    response = await client.get("/metrics", headers=BEARER)
    assert response.status_code == 200
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    text = await response.get_data(as_text=True)
    assert text.endswith("\n")
    samples = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert COMMENT.fullmatch(line), line
        else:
            assert SAMPLE.fullmatch(line), line
            name, value = re.sub(r'instance="[^"]+",?', "", line).rsplit(" ", 1)
            assert name not in samples
            samples[name] = float(value)
    return samples


async def test_requests_are_counted_by_route(client: Client) -> None:
    for path in ("/rows/", "/rows/", "/missing/hunter2"):
        await client.get(path)
    samples = await scrape(client)
    labels = 'http_request_method="GET",http_route="/rows/",http_response_status_code="200"'
    name = "http_server_request_duration_seconds"
    assert samples[f"{name}_count{{{labels}}}"] == 2
    assert samples[f'{name}_bucket{{{labels},le="+Inf"}}'] == 2
    buckets = [
        value for key, value in samples.items() if key.startswith(f"{name}_bucket{{{labels}")
    ]
    assert buckets == sorted(buckets)
    missing = 'http_request_method="GET",http_route="",http_response_status_code="404"'
    assert samples[f"{name}_count{{{missing}}}"] == 1
    assert samples['quart_upsun_request_database_seconds_count{http_route="/rows/"}'] == 2
    assert not any("hunter2" in key for key in samples)


async def test_state_of_the_process_is_shown(client: Client) -> None:
    await client.get("/rows/")
    samples = await scrape(client)
    assert samples['db_client_connection_count{db_client_connection_state="idle"}'] == 1
    assert samples['db_client_connection_count{db_client_connection_state="used"}'] == 0
    assert samples["process_memory_usage_bytes{}"] > 10e6
    assert samples["quart_upsun_jobs_due{}"] == 0
    assert samples["quart_upsun_event_loop_lag_seconds{}"] >= 0


async def test_jobs_are_counted_by_task_and_outcome(app: Quart, client: Client) -> None:
    async def fail(running: JobContext) -> None:
        raise ValueError

    task = Task("fail", fail)
    database = app.extensions["quart_upsun"].database
    async with database.write() as session:
        await enqueue(session, task)
    await runner_of(app, task).run_due()
    samples = await scrape(client)
    labels = 'messaging_destination_name="fail",outcome="retried"'
    assert samples[f"messaging_process_duration_seconds_count{{{labels}}}"] == 1


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}]
)
async def test_the_token_is_required(client: Client, headers: dict[str, str]) -> None:
    response = await client.get("/metrics", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert b"http_" not in await response.get_data()


async def test_it_has_a_complete_policy(app: Quart, client: Client) -> None:
    policy = policy_of(app.view_functions["prometheus.metrics"])
    assert policy is not None
    assert policy.access == "public"
    response = await client.get("/metrics", headers=BEARER)
    assert response.headers["Cache-Control"] == "private, no-store"


async def test_it_is_off_without_a_token(settings: Settings) -> None:
    app = create_app(settings)
    async with app.test_app():
        response = await app.test_client().get("/metrics", headers=BEARER)
    assert response.status_code == 404
