"""A provider process, and a browser that logs in with it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from bs4 import BeautifulSoup
from pydantic import SecretStr
from quart.testing import QuartClient as Client

from app.settings import ROOT, Settings
from app.user.oidc.settings import DISCOVERY_PATH, Provider
from tests.features.oidc.provider_process import CLIENT_ID, CLIENT_SECRET


@dataclass
class ProviderProcess:
    """The process, and what tests tell it to do."""

    origin: str

    def behave(self, **behavior: Any) -> None:
        """Change the behavior. See `DEFAULTS` in provider_process.py for the keys."""
        content = json.dumps(behavior)  # escapes surrogates, which httpx would not
        httpx.post(f"{self.origin}/control", content=content).raise_for_status()

    def be(self, subject: str, email: str | None, *, verified: bool = True, **claims: Any) -> None:
        """Set the user that logs in."""
        user = {"sub": subject, "email": email, "email_verified": verified, **claims}
        self.behave(user=user)

    @property
    def requests(self) -> list[str]:
        """The paths that were requested, each with the cookies that were sent."""
        found: list[str] = httpx.get(f"{self.origin}/requests").json()
        return found


@pytest.fixture(scope="session")
def provider_origin() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.features.oidc.provider_process"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def provider(provider_origin: str) -> ProviderProcess:
    found = ProviderProcess(provider_origin)
    found.behave(reset=True)
    return found


@pytest.fixture
def settings(settings: Settings, provider: ProviderProcess) -> Settings:
    """Two names of one OpenID Connect provider, a GitHub, and a provider that is down."""
    secret = SecretStr(CLIENT_SECRET)
    common: dict[str, Any] = {"client_id": CLIENT_ID, "client_secret": secret}
    openid = {**common, "scopes": "openid email profile"}
    discovery = f"{provider.origin}{DISCOVERY_PATH}"
    providers = (
        Provider(name="mine", label="Mine", discovery_url=discovery, **openid),
        Provider(name="other", label="Other", discovery_url=discovery, proves=False, **openid),
        Provider(
            name="github",
            label="GitHub",
            protocol="github",
            scopes="read:user user:email",
            proves=False,
            github=provider.origin,
            github_api=provider.origin,
            **common,
        ),
        # Nothing listens on the port for discarded data.
        Provider(
            name="down",
            label="Down",
            discovery_url=f"http://127.0.0.1:9{DISCOVERY_PATH}",
            **openid,
        ),
    )
    return settings.model_copy(update={"oidc_providers": providers})


async def begin(client: Client, path: str = "/login/with/mine/", **options: Any) -> str:
    """Start a login, and return the URL at the provider to which the page leads."""
    response = await client.post(path, **options)
    page = await response.get_data(as_text=True)
    assert response.status_code == 200, page
    soup = BeautifulSoup(page, "html.parser")
    link = soup.select_one("#continue")
    refresh = soup.select_one("meta[http-equiv=refresh]")
    assert link is not None
    assert refresh is not None
    assert refresh["content"] == f"0; url={link['href']}"
    return str(link["href"])


async def visit(url: str) -> str:
    """Open the URL at the provider, and return the path and query of the callback."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(url)
    assert answer.status_code == 302, answer.text
    back = urlsplit(answer.headers["Location"])
    assert f"{back.scheme}://{back.netloc}" == "http://127.0.0.1:8000"
    return f"{back.path}?{back.query}"


async def log_in_with(client: Client, path: str = "/login/with/mine/", **options: Any) -> Any:
    """Log in with the provider, and return the response of the callback."""
    return await client.get(await visit(await begin(client, path, **options)))


async def kind_of(response: Any) -> str | None:
    """Return which problem a page is about, or None."""
    soup = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
    found = soup.select_one("#provider-problem")
    return str(found["data-kind"]) if found else None
