"""Validation of ID tokens: OpenID Connect Core 1.0, section 3.1.3.7."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.user.oidc.errors import ProviderResponseError

LEEWAY_SECONDS = 60  # how far clocks may differ
KEYS_SECONDS = 3600.0  # how long keys are cached
# A token with an unknown key makes the keys be fetched again, but anyone can send such a token.
REFETCH_SECONDS = 30.0
# `none` and the algorithms with a shared secret are never accepted: a public key could serve as
# the secret.
KEY_TYPES = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519"), "OKP"),
}


class KeyCache:
    """The public keys of a provider. They are fetched again when a key is unknown.

    Args:
        fetch: fetches the JSON Web Key Set.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Any]]) -> None:
        self._fetch = fetch
        self._keys: list[Any] = []
        self._fetched_at = float("-inf")

    async def verify(self, token: str, algorithms: Sequence[str]) -> Any:
        """Verify a signature and return the token, with `header` and `claims`.

        Raises:
            ProviderResponseError: the signature is invalid, or by an unknown key.
            ProviderUnavailableError: the keys cannot be fetched.
        """
        if self._age() > KEYS_SECONDS:
            await self._refresh()
        found = _verify(token, self._keys, algorithms)
        if found is None and self._age() > REFETCH_SECONDS:
            await self._refresh()
            found = _verify(token, self._keys, algorithms)
        if found is None:
            raise ProviderResponseError("the signature of the ID token is invalid")
        return found

    def _age(self) -> float:
        return time.monotonic() - self._fetched_at

    async def _refresh(self) -> None:
        self._keys = import_keys(await self._fetch())
        self._fetched_at = time.monotonic()


def import_keys(key_set: Any) -> list[Any]:
    """Return the keys of a JSON Web Key Set, without those of unknown types.

    Raises:
        ProviderResponseError: it is not a key set.
    """
    from joserfc.errors import JoseError
    from joserfc.jwk import JWKRegistry

    if not isinstance(key_set, dict) or not isinstance(key_set.get("keys"), list):
        raise ProviderResponseError("the keys are malformed")
    keys = []
    for each in key_set["keys"]:
        if isinstance(each, dict) and each.get("kty") in KEY_TYPES.values():
            try:
                keys.append(JWKRegistry.import_key(each))
            except (JoseError, ValueError, TypeError, KeyError):
                continue  # a provider may add keys that this library does not know
    return keys


def _verify(token: str, keys: Sequence[Any], algorithms: Sequence[str]) -> Any:
    """Return the token if one of the keys has signed it, else None."""
    from joserfc import jws, jwt
    from joserfc.errors import JoseError

    try:
        header = jws.extract_compact(token.encode()).headers()
    except (JoseError, ValueError, TypeError):
        raise ProviderResponseError("the ID token is malformed") from None
    algorithm, identifier = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise ProviderResponseError("the ID token has an algorithm that is not allowed")
    for key in keys:
        if key.key_type != KEY_TYPES[algorithm] or key.get("use", "sig") != "sig":
            continue
        if identifier is not None and key.get("kid") != identifier:
            continue
        try:
            return jwt.decode(token, key, algorithms=[algorithm])
        except (JoseError, ValueError, TypeError):
            continue
    return None


def check_claims(
    token: Any, *, issuer: str, client_id: str, nonce: str, access_token: str | None
) -> dict[str, Any]:
    """Check the claims of a token whose signature is valid, and return them.

    Raises:
        ProviderResponseError: the token is for someone else, or for another login, or expired. The
            message names the claim.
    """
    from authlib.oidc.core import CodeIDToken
    from joserfc.errors import ClaimError, JoseError

    claims = CodeIDToken(
        token.claims,
        token.header,
        options={
            "iss": {"essential": True, "value": issuer},
            "aud": {"essential": True, "value": client_id},
        },
        params={"client_id": client_id, "nonce": nonce, "access_token": access_token},
    )
    try:
        claims.validate(leeway=LEEWAY_SECONDS)
    except ClaimError as error:
        raise ProviderResponseError(
            f"the ID token has an invalid claim: {error.claim or error.error}"
        ) from None
    except (JoseError, ValueError, TypeError, AttributeError):
        raise ProviderResponseError("the claims of the ID token are malformed") from None
    return dict(claims)
