"""HTTP requests to providers, with one client per process."""

import asyncio
import json
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

from app.user.oidc.errors import ProviderResponseError, ProviderUnavailableError
from app.user.oidc.settings import is_secure_url

if TYPE_CHECKING:
    import httpx

STEP_TIMEOUT_SECONDS = 3.0  # to connect, and for each read
MAX_RESPONSE_BYTES = 256 * 1024


class Http:
    """Sends requests and returns JSON objects. Connects on first use.

    The caller limits the time: the timeouts of httpx are those of single steps.

    It stores no cookies, because its requests are those of many users, and follows no redirects.
    """

    def __init__(self, user_agent: str) -> None:
        self._user_agent = user_agent  # GitHub's API requires one
        self._client: httpx.AsyncClient | None = None
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def get(self, url: str, *, token: str | None = None) -> Any:
        """Return the JSON value at a URL.

        Args:
            url: the URL; http only on this machine.
            token: an access token to send.

        Raises:
            ProviderUnavailableError: no answer in time, or a status of 429 or 5xx.
            ProviderResponseError: another status, or not JSON.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await self._send("GET", url, headers=headers)

    async def post(self, url: str, form: dict[str, str], headers: dict[str, str]) -> Any:
        """Send a form and return the JSON value of the response. Raises as `get()` does."""
        return await self._send("POST", url, headers=headers, data=form)

    async def _send(self, method: str, url: str, *, headers: dict[str, str], **body: Any) -> Any:
        import httpx

        if not is_secure_url(url):
            raise ProviderResponseError("a URL of the provider is not https")
        client = await self._connected()
        try:
            headers = {"Accept": "application/json", **headers}
            async with client.stream(method, url, headers=headers, **body) as response:
                content = bytearray()
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MAX_RESPONSE_BYTES:
                        raise ProviderResponseError("a response is too large")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ProviderUnavailableError(type(error).__name__) from None
        except UnicodeError:  # an access token that is not ASCII cannot be sent
            raise ProviderResponseError("a value is not ASCII") from None
        if response.status_code >= 500 or response.status_code == 429:
            raise ProviderUnavailableError(f"status {response.status_code}")
        if response.status_code != 200:
            raise ProviderResponseError(f"status {response.status_code}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ProviderResponseError("a response is not JSON") from None

    async def _connected(self) -> "httpx.AsyncClient":
        async with self._starting:
            if self._client is None:
                self._client = await asyncio.to_thread(_create_client, self._user_agent)
        return self._client


def _create_client(user_agent: str) -> "httpx.AsyncClient":
    """Create the client, and import what checks responses.

    Runs in a thread, because reading all CA certificates and the imports take a third of a second.
    """
    import authlib.oidc.core  # noqa: F401
    import httpx
    import joserfc.jwt  # noqa: F401

    return httpx.AsyncClient(
        timeout=STEP_TIMEOUT_SECONDS,
        trust_env=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"User-Agent": user_agent},
    )
