"""Pages that show stored emails in development."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from jinja2 import ChoiceLoader, DictLoader
from sqlalchemy.ext.asyncio import AsyncSession

from app import create_app
from app.settings import Settings
from quart_upsun.mail import outbox, transports
from quart_upsun.mail.delivery import external_url
from quart_upsun.mail.letters import Letter

ADA = "ada@example.com"
GREETING = "Subject: Hello {{ name }}\n\nDear {{ name }},\n\nlook:\n\n{{ link }}\n"


async def greeting(session: AsyncSession, data: dict[str, str]) -> Letter:
    link = external_url("public.about", token="t0ken")
    return Letter(ADA, "greeting", {"name": data["name"], "link": link})


async def test_development_emails_are_shown(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "MAIL_DIRECTORY", tmp_path / "mail")
    app = create_app(settings.model_copy(update={"flask_debug": True}))
    state = app.extensions["quart_upsun"]
    state.mail.composers["greeting"] = greeting
    assert app.jinja_env.loader is not None
    loaders = [DictLoader({"mail/greeting.txt": GREETING}), app.jinja_env.loader]
    app.jinja_env.loader = ChoiceLoader(loaders)
    async with app.test_app():
        client = app.test_client()

        async def page(path: str) -> BeautifulSoup:
            text = await (await client.get(path)).get_data(as_text=True)
            soup = BeautifulSoup(text, "html.parser")
            for bar in soup.select(".debug-bar"):
                bar.decompose()
            return soup

        assert not (await page("/dev/mail/")).select("table")
        for name in ("one", "<script>alert(1)</script>"):
            async with state.database.write() as session:
                await outbox.send_later(session, "greeting", name=name)
            await state.jobs.run_due()
        found = (await page("/dev/mail/")).select("td a")
        subjects = [a.get_text() for a in found]
        assert subjects == ["Hello <script>alert(1)</script>", "Hello one"]
        shown = await page(str(found[0]["href"]))
        assert not shown.select("script:not([src])")
        assert shown.select('main a[href$="/about/?token=t0ken"]')
        assert ADA in shown.get_text()
