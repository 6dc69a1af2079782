"""The administration page of jobs: retrying and deleting failed jobs."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app.admin import views
from app.settings import Settings
from quart_upsun.jobs import failed, runner
from quart_upsun.jobs.models import Job, JobLog
from quart_upsun.jobs.queue import JobContext, PermanentJobError, Task, enqueue
from quart_upsun.mail import delivery
from quart_upsun.testing.smtp import MailServer, mail_server
from tests.features.factories import Person


@pytest.fixture
async def mailbox() -> AsyncIterator[MailServer]:
    async with mail_server() as server:
        yield server


@pytest.fixture
def settings(settings: Settings, mailbox: MailServer) -> Settings:
    mail_url = SecretStr(mailbox.url)
    return settings.model_copy(
        update={"mail_url": mail_url, "public_origin": "https://www.example.com"}
    )


@pytest.fixture
async def root(app: Quart, client: Client) -> Person:
    """An administrator who is logged in with `client`."""
    person = await Person(username="root").register(app, administrator=True)
    await person.log_in(client)
    return person


async def fail(running: JobContext) -> None:
    raise PermanentJobError(f"No <b>{running.data['secret']}</b>", "no")


FAILING = Task("failing", fail, logged_fields=("number",))


@pytest.fixture
def failing(app: Quart) -> Task:
    app.extensions["quart_upsun"].jobs.tasks[FAILING.name] = FAILING
    return FAILING


async def add_failed_job(app: Quart, task: Task, *, key: str | None = None, **data: Any) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await enqueue(session, task, key=key, secret="swordfish", **data)
    await run_jobs(app)


async def run_jobs(app: Quart) -> None:
    await app.extensions["quart_upsun"].jobs.run_due()


async def page(client: Client, path: str = "/admin/jobs/") -> BeautifulSoup:
    response = await client.get(path)
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def articles(client: Client) -> list[Tag]:
    return list((await page(client)).select("main article"))


async def submit(client: Client, article: Tag, button: str) -> str:
    """Submit the form of a button, and return the text of the resulting page."""
    for form in article.select("form"):
        if button in [each.get_text(strip=True) for each in form.select("button[type=submit]")]:
            response = await client.post(str(form["action"]))
            assert response.status_code == 303
            return (await page(client, str(response.location))).get_text()
    raise AssertionError(f"no button {button}")


async def test_failed_email_is_retried_and_delivered(
    app: Quart,
    client: Client,
    root: Person,
    mailbox: MailServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Enqueue, fail without a server, retry, fail finally, retry as an administrator, deliver."""
    ada = await Person().register(app)
    mailbox.stop()
    response = await client.post("/forgot/", form={"email": ada.email})
    assert response.status_code == 303
    database = app.extensions["quart_upsun"].database
    attempts = len(delivery.SEND_MAIL.backoff_seconds) + 1
    for attempt in range(attempts):
        async with database.read() as session:
            assert (await session.execute(select(Job.status, Job.attempts))).one() == (
                "queued",
                attempt,
            )
        assert await articles(client) == []
        await run_jobs(app)
        async with database.write() as session:
            await session.execute(update(Job).values(execute_after=func.now()))
    (article,) = await articles(client)
    text = article.get_text(" ", strip=True)
    assert "mail #" in text
    assert "Kind: reset" in text
    assert f"Attempts {attempts}" in text
    assert "Error connecting to" in text
    assert ada.email not in text
    logged = [
        record
        for record in caplog.records
        if record.name.startswith(("app.", "quart_upsun.")) and "metrics" not in record.name
    ]
    assert [record.levelno for record in logged][-2:] == [logging.WARNING, logging.ERROR]
    assert not any(ada.email in str(record.msg) for record in logged)

    async with mail_server() as repaired:
        app.extensions["quart_upsun"].mail.transport.port = repaired.port
        assert "The job was queued again." in await submit(client, article, "Retry")
        await run_jobs(app)
        assert [message["To"] for message in repaired.messages] == [ada.email]
    assert await articles(client) == []


async def test_retry_notifies_a_waiting_worker(
    app: Quart,
    client: Client,
    root: Person,
    mailbox: MailServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "POLL_INTERVAL", timedelta(minutes=1))
    mailbox.answers["RCPT"] = "550 No"
    ada = await Person().register(app)
    await client.post("/forgot/", form={"email": ada.email})
    await run_jobs(app)
    mailbox.answers.clear()
    (article,) = await articles(client)
    worker = app.extensions["quart_upsun"].jobs
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(0.5)  # it has polled, and waits for a notification
    await submit(client, article, "Retry")
    await mailbox.wait_for_messages()
    worker.stop()
    await working


async def test_job_data_is_hidden_except_logged_fields(
    app: Quart, client: Client, root: Person, failing: Task
) -> None:
    await add_failed_job(app, failing, number=7)
    shown = await page(client)
    (article,) = shown.select("main article")
    assert "Number: 7" in article.get_text()
    assert "No <b>swordfish</b>" in article.get_text()  # error messages are shown as they are
    assert article.get_text().count("swordfish") == 1
    counts = [
        [cell.get_text() for cell in row.select("td, th")] for row in shown.select("#counts tr")
    ]
    assert counts[0] == ["Task", *(state.capitalize() for state in failed.STATES.values())]
    assert counts[1:] == [["failing", "0", "0", "1"]]


async def test_retry_of_duplicate_job_is_rejected(
    app: Quart, client: Client, root: Person, failing: Task
) -> None:
    await add_failed_job(app, failing, key="the key")
    async with app.extensions["quart_upsun"].database.write() as session:
        await enqueue(session, failing, key="the key", secret="x")
    (article,) = await articles(client)
    assert "already in the queue" in await submit(client, article, "Retry")
    (article,) = await articles(client)
    assert "The job was deleted." in await submit(client, article, "Delete job")
    assert await articles(client) == []


async def test_deleting_a_job_deletes_its_log(
    app: Quart, client: Client, root: Person, failing: Task
) -> None:
    await add_failed_job(app, failing)
    await add_failed_job(app, failing)
    (newer, older) = await articles(client)
    await submit(client, newer, "Delete job")
    assert [each.h3 for each in await articles(client)] == [older.h3]
    async with app.extensions["quart_upsun"].database.read() as session:
        (job,) = await session.scalars(select(Job.id))
        logs = select(JobLog.job_id).where(JobLog.entrypoint == failing.name)
        assert set(await session.scalars(logs)) == {job}


async def test_failed_jobs_are_paginated(
    app: Quart, client: Client, root: Person, failing: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE_SIZE", 2)
    for number in range(5):
        async with app.extensions["quart_upsun"].database.write() as session:
            await enqueue(session, failing, secret="x", number=number)
    await run_jobs(app)
    found, path = [], "/admin/jobs/"
    while path:
        shown = await page(client, path)
        found.append([each.select("p")[0].get_text() for each in shown.select("main article")])
        older = shown.select_one("a[rel=next]")
        path = str(older["href"]) if older else ""
    assert found == [["Number: 4", "Number: 3"], ["Number: 2", "Number: 1"], ["Number: 0"]]


async def test_only_failed_jobs_can_be_retried_or_deleted(
    app: Quart, client: Client, root: Person, failing: Task
) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await enqueue(session, failing, secret="x")
        job = await session.scalar(select(Job.id))
    for change in ("again", "remove"):
        assert (await client.post(f"/admin/jobs/{job}/{change}/")).status_code == 404
    async with app.extensions["quart_upsun"].database.read() as session:
        assert await session.scalar(select(Job.status)) == "queued"
