"""Providers: where users are sent to, and who they are when they return.

The flow is the authorization code flow with PKCE: RFC 6749, RFC 7636, OpenID Connect Core 1.0.
authlib's own clients are not used: that of httpx keeps the token of one user, so each login would
need a client and a connection of its own. The checks of claims are authlib's, those of signatures
joserfc's.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from app.user.oidc.errors import ProviderResponseError, ProviderUnavailableError
from app.user.oidc.flow import Flow
from app.user.oidc.http import Http
from app.user.oidc.id_tokens import KEY_TYPES, KeyCache, check_claims
from app.user.oidc.models import ISSUER_LENGTH, SUBJECT_LENGTH
from app.user.oidc.settings import DISCOVERY_PATH, Provider, is_secure_url

DISCOVERY_SECONDS = 3600.0  # how long the discovery document is cached
LOGIN_TIMEOUT_SECONDS = 6.0  # for all requests of one login together
# Microsoft's endpoint for all organizations: each issuer has its own id in place of this.
TENANT = "{tenantid}"
SURROGATES = re.compile("[\ud800-\udfff]")
TENANT_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Identity(NamedTuple):
    """An account at a provider."""

    provider: str
    issuer: str
    subject: str
    email: str | None
    is_email_verified: bool
    names: tuple[str, ...]
    """What the user may want as username, best first."""
    auth_time: float | None = None
    """When the provider has asked the user to log in last, in seconds since 1970."""


class OpenIDProvider:
    """A provider with OpenID Connect."""

    def __init__(self, provider: Provider, http: Http) -> None:
        self.provider = provider
        self._http = http
        self._keys = KeyCache(self._fetch_keys)
        self._metadata: dict[str, Any] = {}
        self._fetched_at = float("-inf")

    async def authorization_url(self, flow: Flow, callback: str) -> str:
        """Return the URL at the provider where the user logs in.

        Raises:
            ProviderUnavailableError: the discovery document cannot be fetched.
            ProviderResponseError: it is invalid.
        """
        parameters = _authorization_parameters(self.provider, flow, callback)
        parameters["nonce"] = flow.nonce
        if flow.purpose == "proof":
            # `max_age` makes `auth_time` required, and `prompt` is what most providers heed.
            parameters |= {"prompt": "login", "max_age": "0"}
        metadata = await self._discover()
        return _with_query(metadata["authorization_endpoint"], parameters)

    async def identify(
        self, flow: Flow, *, code: str, issuer: str | None, callback: str
    ) -> Identity:
        """Exchange a code for an ID token and return who has logged in.

        Args:
            flow: the flow that the response belongs to.
            code: the code in the response.
            issuer: the issuer in the response, if there is one (RFC 9207).
            callback: the address to which the provider has sent the response.

        Raises:
            ProviderUnavailableError: the provider does not answer.
            ProviderResponseError: the response is not one to this flow, or cannot be trusted.
        """
        metadata = await self._discover()
        expected = metadata["issuer"]
        is_issuer_required = metadata.get("authorization_response_iss_parameter_supported") is True
        if (issuer is not None or is_issuer_required) and issuer != expected:
            raise ProviderResponseError("the response is from another issuer")
        form = _token_request(flow, code, callback)
        headers = _authenticate(self.provider, form, metadata)
        tokens = await self._http.post(metadata["token_endpoint"], form, headers)
        id_token, access_token = _text(tokens, "id_token"), _text(tokens, "access_token")
        if id_token is None:
            raise ProviderResponseError("the response has no ID token")
        verified = await self._keys.verify(id_token, _algorithms(metadata))
        if TENANT in expected:
            expected = _issuer_of_tenant(expected, verified.claims)
        claims = check_claims(
            verified,
            issuer=expected,
            client_id=self.provider.client_id,
            nonce=flow.nonce,
            access_token=access_token,
        )
        subject = claims["sub"]
        if _text(claims, "email") is None and access_token and metadata.get("userinfo_endpoint"):
            more = await self._http.get(metadata["userinfo_endpoint"], token=access_token)
            if _text(more, "sub") != subject:
                raise ProviderResponseError("the user info belongs to another user")
            claims = {**more, **claims}
        auth_time = claims.get("auth_time")
        return _identity(
            self.provider,
            expected,
            subject,
            email=_text(claims, "email"),
            # `xms_edov` is Microsoft's name for it. Some providers send a string.
            is_email_verified=any(
                claims.get(name) is True or claims.get(name) == "true"
                for name in ("email_verified", "xms_edov")
            ),
            names=(_text(claims, each) for each in ("preferred_username", "nickname", "name")),
            auth_time=auth_time if isinstance(auth_time, int | float) else None,
        )

    async def _discover(self) -> dict[str, Any]:
        """Return the discovery document, which is cached."""
        if time.monotonic() - self._fetched_at <= DISCOVERY_SECONDS:
            return self._metadata
        found = await self._http.get(self.provider.discovery_url)
        if not isinstance(found, dict):
            raise ProviderResponseError("the discovery document is malformed")
        issuer = _text(found, "issuer")
        if issuer is None or (
            TENANT not in issuer
            and f"{issuer.rstrip('/')}{DISCOVERY_PATH}" != self.provider.discovery_url
        ):
            raise ProviderResponseError("the discovery document is of another issuer")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not is_secure_url(found.get(name)):
                raise ProviderResponseError(f"the discovery document has no valid {name}")
        self._metadata, self._fetched_at = found, time.monotonic()
        return found

    async def _fetch_keys(self) -> Any:
        return await self._http.get((await self._discover())["jwks_uri"])


class GitHub:
    """GitHub, which has OAuth only: the API says who the user is, and which addresses are theirs.

    https://docs.github.com/en/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps
    """

    def __init__(self, provider: Provider, http: Http) -> None:
        self.provider = provider
        self._http = http

    async def authorization_url(self, flow: Flow, callback: str) -> str:
        """Return the URL at GitHub where the user logs in."""
        parameters = _authorization_parameters(self.provider, flow, callback)
        return _with_query(f"{self.provider.github}/login/oauth/authorize", parameters)

    async def identify(
        self, flow: Flow, *, code: str, issuer: str | None, callback: str
    ) -> Identity:
        """Exchange a code for an access token and ask the API. See `OpenIDProvider.identify()`."""
        form = _token_request(flow, code, callback)
        form |= {
            "client_id": self.provider.client_id,
            "client_secret": self.provider.client_secret.get_secret_value(),
        }
        url = f"{self.provider.github}/login/oauth/access_token"
        # A wrong code is a 200 with an error in it.
        token = _text(await self._http.post(url, form, {}), "access_token")
        if token is None:
            raise ProviderResponseError("the response has no access token")
        user, addresses = await asyncio.gather(
            self._http.get(f"{self.provider.github_api}/user", token=token),
            self._http.get(f"{self.provider.github_api}/user/emails", token=token),
        )
        if not isinstance(user, dict) or not isinstance(user.get("id"), int):
            raise ProviderResponseError("the user has no id")
        if not isinstance(addresses, list):
            raise ProviderResponseError("the email addresses are malformed")
        primary = next(
            (each for each in addresses if isinstance(each, dict) and each.get("primary") is True),
            {},
        )
        return _identity(
            self.provider,
            self.provider.github,
            str(user["id"]),  # the login name can change and be taken by someone else
            email=_text(primary, "email"),
            is_email_verified=primary.get("verified") is True,
            names=(_text(user, each) for each in ("login", "name")),
        )


class Providers:
    """The configured providers of an application."""

    def __init__(self, configured: Iterable[Provider], user_agent: str) -> None:
        self.http = Http(user_agent)
        self._clients: dict[str, OpenIDProvider | GitHub] = {
            each.name: (GitHub if each.protocol == "github" else OpenIDProvider)(each, self.http)
            for each in configured
        }

    @property
    def configured(self) -> list[Provider]:
        return [each.provider for each in self._clients.values()]

    @property
    def names(self) -> list[str]:
        return list(self._clients)

    def get(self, name: str) -> Provider | None:
        """Return the provider with this name, or None."""
        client = self._clients.get(name)
        return None if client is None else client.provider

    async def authorization_url(self, flow: Flow, callback: str) -> str:
        """Return the URL at the provider of a flow where the user logs in.

        Raises:
            ProviderUnavailableError: the provider does not answer in time.
            ProviderResponseError: the provider's description of itself is invalid.
        """
        async with _login_timeout():
            return await self._clients[flow.provider].authorization_url(flow, callback)

    async def identify(
        self, flow: Flow, *, code: str, issuer: str | None, callback: str
    ) -> Identity:
        """Return who has logged in. See `OpenIDProvider.identify()` for arguments and errors."""
        async with _login_timeout():
            client = self._clients[flow.provider]
            return await client.identify(flow, code=code, issuer=issuer, callback=callback)


@asynccontextmanager
async def _login_timeout() -> AsyncIterator[None]:
    """Limit the time of all requests of a login together.

    Raises:
        ProviderUnavailableError: they take too long.
    """
    try:
        async with asyncio.timeout(LOGIN_TIMEOUT_SECONDS):
            yield
    except TimeoutError:
        raise ProviderUnavailableError("timeout") from None


def _authorization_parameters(provider: Provider, flow: Flow, callback: str) -> dict[str, str]:
    digest = hashlib.sha256(flow.verifier.encode()).digest()
    return {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": callback,
        "scope": provider.scopes,
        "state": flow.state,
        "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
        "code_challenge_method": "S256",
    }


def _with_query(url: str, parameters: dict[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters, quote_via=quote)}"


def _token_request(flow: Flow, code: str, callback: str) -> dict[str, str]:
    return {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": callback,
        "code_verifier": flow.verifier,
    }


def _authenticate(
    provider: Provider, form: dict[str, str], metadata: dict[str, Any]
) -> dict[str, str]:
    """Add the client's credentials to the form, or return the header with them.

    Basic authentication is the default of the standard, but implementations differ in how they
    encode a secret, so the form is used where a provider knows both.
    """
    secret = provider.client_secret.get_secret_value()
    methods = metadata.get("token_endpoint_auth_methods_supported")
    if isinstance(methods, list) and "client_secret_post" in methods:
        form |= {"client_id": provider.client_id, "client_secret": secret}
        return {}
    pair = f"{quote(provider.client_id, safe='')}:{quote(secret, safe='')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _algorithms(metadata: dict[str, Any]) -> list[str]:
    supported = metadata.get("id_token_signing_alg_values_supported")
    if not isinstance(supported, list):
        return ["RS256"]  # every provider must support it
    return [each for each in supported if isinstance(each, str) and each in KEY_TYPES]


def _issuer_of_tenant(template: str, claims: dict[str, Any]) -> str:
    tenant = _text(claims, "tid")
    if tenant is None or not TENANT_ID.fullmatch(tenant):
        raise ProviderResponseError("the ID token has no valid tid")
    return template.replace(TENANT, tenant)


def _text(values: Any, name: str) -> str | None:
    """Return a string of a JSON object; None if it is missing, blank or of another type.

    Also None if it has half of a surrogate pair, which JSON can contain but no response and no
    database can.
    """
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value.strip() or SURROGATES.search(value):
        return None
    return value


def _identity(
    provider: Provider,
    issuer: str,
    subject: object,
    *,
    email: str | None,
    is_email_verified: bool,
    names: Iterable[str | None],
    auth_time: float | None = None,
) -> Identity:
    """Return an identity that fits the database.

    Raises:
        ProviderResponseError: the subject is missing or too long.
    """
    if (
        not isinstance(subject, str)
        or not 0 < len(subject) <= SUBJECT_LENGTH
        or len(issuer) > ISSUER_LENGTH
        or not subject.isprintable()
    ):
        raise ProviderResponseError("the subject is invalid")
    return Identity(
        provider.name,
        issuer,
        subject,
        email,
        is_email_verified,
        tuple(filter(None, names)),
        auth_time,
    )
