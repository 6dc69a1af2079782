"""Live progress of an import."""

import pytest
from playwright.async_api import FilePayload, expect

from app import create_app
from app.bookmarks import jobs
from app.bookmarks.jobs import IMPORT_TASK
from app.bookmarks.uploads import CHUNK_BYTES
from app.settings import Settings
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing import runner_of
from tests.browser.browsing import NewPage, log_in
from tests.browser.pages_links import web_server
from tests.features.bookmarks.test_imports import bookmarks
from tests.features.factories import Person

pytestmark = pytest.mark.xdist_group("browser")

# Records each state that the page shows.
NOTE_STATES = """addEventListener("DOMContentLoaded", () => {
  const state = document.querySelector("[data-state]");
  if (!state) return;
  const bar = state.closest("section").querySelector("progress");
  const note = () => states(state.textContent, bar?.value);
  note();
  new MutationObserver(note).observe(state, { childList: true });
})"""


async def test_import_progress_is_updated_live(
    new_page: NewPage, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "EVENT_INTERVAL_SECONDS", 0.0)
    database = Database(parse_database_url(own_database_url), pool_size=4)
    ada = await Person().create(database)
    states: list[tuple[str, int | None]] = []
    async with web_server(own_database_url) as server:
        page = await new_page(base_url=server.url)
        await page.expose_function("states", lambda text, value: states.append((text, value)))
        await page.add_init_script(NOTE_STATES)
        await log_in(page, ada)
        await page.goto("/links/import/")
        content = bookmarks(8000)
        assert len(content) > 2 * CHUNK_BYTES  # several progress updates
        await page.locator("#file").set_input_files(
            FilePayload(name="bookmarks.html", mimeType="text/html", buffer=content)
        )
        async with page.expect_response(lambda response: "/events/" in response.url):
            await page.get_by_role("button", name="Import bookmarks").click()
        await expect(page.get_by_role("progressbar")).to_be_visible()

        app = create_app(Settings(database_url=database.engine.url))
        await runner_of(app, IMPORT_TASK).run_due()
        # The page reloads itself when the import has finished.
        await expect(page.get_by_text("8,000 added, 0 already saved")).to_be_visible()
        await expect(page.get_by_role("progressbar")).to_have_count(0)
        await page.wait_for_load_state()
        await page.close()
        await server.stop_cleanly()
    await database.close()
    assert states[0] == ("waiting", 0)
    assert states[-1] == ("completed", None)
    moved = [value for text, value in states if value and text == f"in progress, {value} %"]
    assert moved == sorted(moved)
    assert len({*moved}) > 1, states
