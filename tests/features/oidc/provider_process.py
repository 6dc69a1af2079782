"""A provider that tests can make misbehave: `python -m tests.features.oidc.provider_process`.

It prints its port. It logs in every visitor, without asking, as the user that `POST /control` has
set. It speaks OpenID Connect, and what GitHub has instead.
"""

import base64
import hashlib
import hmac
import json
import secrets
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID = "client"
CLIENT_SECRET = "s3cret/with:signs"

DEFAULTS: dict[str, Any] = {
    "user": {"sub": "subject-1", "email": "ada@example.com", "email_verified": True},
    "claims": {},  # replace those of the ID token; None removes one
    "userinfo": {},
    "algorithm": "RS256",
    "auth_time": True,
    "status": {},  # by path
    "hang": [],  # paths
    "body": {},  # by path
    "access_token": None,  # a random one
    "response_iss": None,
    "metadata": {},
    "github_user": {"id": 7, "login": "ada-github", "name": "Ada"},
    "github_emails": [{"email": "ada@example.com", "primary": True, "verified": True}],
}


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


class Provider:
    """The state of the process."""

    def __init__(self) -> None:
        self.behavior = dict(DEFAULTS)
        self.codes: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.port = 0
        self.rotate()

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rotate(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig"})

    def control(self, body: dict[str, Any]) -> None:
        if body.pop("reset", False):
            self.behavior = dict(DEFAULTS)
            self.requests.clear()
        if body.pop("rotate", False):
            self.rotate()
        self.behavior |= body

    def id_token(self, request: dict[str, str], access_token: str) -> str:
        now = int(time.time())
        digest = hashlib.sha256(access_token.encode()).digest()[:16]
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "exp": now + 300,
            "iat": now,
            "nonce": request.get("nonce"),
            "at_hash": encode(digest),
            **({"auth_time": now} if self.behavior["auth_time"] else {}),
            **self.behavior["user"],
            **self.behavior["claims"],
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        algorithm = self.behavior["algorithm"]
        header = {"alg": algorithm, "kid": self.key.kid}
        if algorithm in {"none", "HS256"}:  # which joserfc refuses to write
            text = ".".join(encode(json.dumps(each).encode()) for each in (header, claims))
            # With the public key, which everybody has, as the secret.
            public = self.key.as_pem(private=False)
            signature = hmac.digest(public, text.encode(), hashlib.sha256)
            return f"{text}.{encode(signature) if algorithm == 'HS256' else ''}"
        return jwt.encode(header, claims, self.key, algorithms=[algorithm])


provider = Provider()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        content = provider.behavior["body"].get(self.path, json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Set-Cookie", "tracking=1; Path=/")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def is_disturbed(self, path: str) -> bool:
        provider.requests.append(f"{path} {self.headers.get('Cookie') or ''}".strip())
        if path in provider.behavior["hang"]:
            threading.Event().wait(30)
        status = provider.behavior["status"].get(path)
        if status:
            self.reply({"error": "server_error"}, status)
        return bool(status)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/requests":
            return self.reply(provider.requests)
        if self.is_disturbed(url.path):
            return None
        match url.path:
            case "/.well-known/openid-configuration":
                return self.reply(
                    {
                        "issuer": provider.issuer,
                        "authorization_endpoint": f"{provider.issuer}/authorize",
                        "token_endpoint": f"{provider.issuer}/token",
                        "jwks_uri": f"{provider.issuer}/jwks",
                        "userinfo_endpoint": f"{provider.issuer}/userinfo",
                        "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
                        **provider.behavior["metadata"],
                    }
                )
            case "/jwks":
                unknown = {"kty": "future", "kid": "x"}
                return self.reply({"keys": [unknown, provider.key.as_dict(private=False)]})
            case "/authorize" | "/login/oauth/authorize":
                code = secrets.token_urlsafe(8)
                provider.codes[code] = query
                answer = {"code": code, "state": query["state"]}
                if provider.behavior["response_iss"]:
                    answer["iss"] = provider.behavior["response_iss"]
                location = f"{query['redirect_uri']}?{urlencode(answer)}"
                return self.reply({}, 302, Location=location)
            case "/userinfo":
                return self.reply({**provider.behavior["user"], **provider.behavior["userinfo"]})
            case "/user":
                return self.reply(provider.behavior["github_user"])
            case "/user/emails":
                return self.reply(provider.behavior["github_emails"])
        return self.reply({}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.path == "/control":
            provider.control(json.loads(body))
            return self.reply({})
        if self.is_disturbed(self.path):
            return None
        form = {name: values[0] for name, values in parse_qs(body).items()}
        request = provider.codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = encode(verifier)
        credentials = f"{CLIENT_ID}:{quote(CLIENT_SECRET, safe='')}".encode()
        basic = f"Basic {base64.b64encode(credentials).decode()}"
        is_known = self.headers.get("Authorization") == basic or (
            (form.get("client_id"), unquote(form.get("client_secret", "")))
            == (CLIENT_ID, CLIENT_SECRET)
        )
        if not is_known:
            return self.reply({"error": "invalid_client"}, 401)
        if (
            request is None
            or request.get("code_challenge") != challenge
            or request.get("code_challenge_method") != "S256"
            or request.get("redirect_uri") != form.get("redirect_uri")
        ):
            # GitHub says so with a 200.
            return self.reply({"error": "invalid_grant"}, 400 if self.path == "/token" else 200)
        access_token = provider.behavior["access_token"] or secrets.token_urlsafe(8)
        answer = {"access_token": access_token, "token_type": "Bearer"}
        if self.path == "/token":
            answer["id_token"] = provider.id_token(request, access_token)
        return self.reply(answer)


if __name__ == "__main__":
    server = ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler
    )
    server.daemon_threads = True
    provider.port = server.server_address[1]
    print(provider.port, flush=True)
    server.serve_forever()
