"""Visits to the administration pages with test data."""

from playwright.async_api import Page, expect
from sqlalchemy import insert

from quart_upsun.jobs.models import Job, JobLog
from tests.browser.browsing import Site, Visit, log_in, register
from tests.features.factories import Person


def administration(path: str) -> Visit:
    async def visit(page: Page, site: Site) -> None:
        root = Person()
        await register(site, root, administrator=True)
        await log_in(page, root)
        await page.goto(path)

    return visit


async def failed_job(page: Page, site: Site) -> None:
    await administration("/admin/")(page, site)
    async with site.database.write() as session:
        job = {"entrypoint": "mail", "priority": 10, "status": "failed"}
        payload = b'{"kind": "confirm"}'
        added = insert(Job).values(**job, attempts=7, payload=payload).returning(Job.id)
        traceback = {"exception_message": f"550 no such user {'x' * 60}@example.com"}
        job_id = await session.scalar(added)
        await session.execute(insert(JobLog).values(**job, job_id=job_id, traceback=traceback))
    await page.goto("/admin/jobs/")
    await expect(page.get_by_text("550 no such user").first).to_be_visible()


PAGES: dict[str, Visit] = {
    "list of users": administration("/admin/"),
    "jobs": failed_job,
}
