"""The variables `OIDC_<NAME>_…`."""

from pathlib import Path

import pytest

from app.settings import Settings, load_settings
from app.user.oidc.settings import PRESETS, is_secure_url
from quart_upsun.settings import SettingsError

DISCOVERY = "https://id.example.com/.well-known/openid-configuration"
GOOGLE = {"OIDC_GOOGLE_CLIENT_ID": "id", "OIDC_GOOGLE_CLIENT_SECRET": "hunter2"}
ACME = {"OIDC_ACME_CLIENT_ID": "id", "OIDC_ACME_CLIENT_SECRET": "hunter2"}


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@db.example/main")
    monkeypatch.setattr(Settings, "root", tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_no_provider_by_default() -> None:
    assert load_settings().oidc_providers == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_need_only_client_id_and_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    prefix = f"OIDC_{name.upper()}"
    variables = {f"{prefix}_CLIENT_ID": "id", f"{prefix}_CLIENT_SECRET": "hunter2"}
    (found,) = load(monkeypatch, variables).oidc_providers
    assert (found.name, found.label) == (name, PRESETS[name]["label"])
    assert found.client_secret.get_secret_value() == "hunter2"
    assert (found.protocol == "github") == (not found.discovery_url)


def test_any_provider_by_discovery_url(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        **GOOGLE,
        "OIDC_MY_COMPANY_CLIENT_ID": "other",
        "OIDC_MY_COMPANY_CLIENT_SECRET": "hunter2",
        "OIDC_MY_COMPANY_DISCOVERY_URL": DISCOVERY,
        "OIDC_MY_COMPANY_LABEL": "Acme",
        "OIDC_MY_COMPANY_SCOPES": "openid email",
        "OIDC_MY_COMPANY_UNUSED": "",
    }
    acme, google = load(monkeypatch, variables).oidc_providers  # sorted by label
    assert (acme.name, acme.label, acme.client_id) == ("my-company", "Acme", "other")
    assert (acme.discovery_url, acme.scopes) == (DISCOVERY, "openid email")
    assert google.scopes == "openid email profile"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"OIDC_GOOGLE_CLIENT_ID": "id"}, "OIDC_GOOGLE_CLIENT_SECRET is not set."),
        ({"OIDC_GOOGLE_CLIENT_SECRET": "hunter2"}, "OIDC_GOOGLE_CLIENT_ID is not set."),
        ({"OIDC_GOOGLE_CLIENTSECRET": "hunter2"}, "OIDC_GOOGLE_CLIENTSECRET is unknown."),
        ({"OIDC_CLIENT_ID": "hunter2"}, "OIDC_CLIENT_ID is unknown."),
        (ACME, "OIDC_ACME_DISCOVERY_URL is not set."),
        (
            {**ACME, "OIDC_ACME_DISCOVERY_URL": "https://hunter2.example/"},
            "OIDC_ACME_DISCOVERY_URL must be https://",
        ),
        (
            {**ACME, "OIDC_ACME_DISCOVERY_URL": DISCOVERY.replace("https", "http")},
            "OIDC_ACME_DISCOVERY_URL must be https://",
        ),
        ({**GOOGLE, "OIDC_GOOGLE_SCOPES": "email"}, "OIDC_GOOGLE_SCOPES must contain openid"),
        ({**GOOGLE, "OIDC_GOOGLE_LABEL": "x" * 41}, "OIDC_GOOGLE_LABEL must have at most 40"),
        ({f"OIDC_{'X' * 31}_CLIENT_ID": "id"}, f"OIDC_{'X' * 31}_CLIENT_ID: the name must have"),
        (
            {
                "OIDC_GITHUB_CLIENT_ID": "id",
                "OIDC_GITHUB_CLIENT_SECRET": "hunter2",
                "OIDC_GITHUB_DISCOVERY_URL": DISCOVERY,
            },
            "OIDC_GITHUB_DISCOVERY_URL cannot be set",
        ),
    ],
)
def test_incomplete_or_wrong_variables_end_the_start(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(monkeypatch, variables)
    message = str(raised.value)
    assert message.startswith(sentence)
    assert message.endswith(".")
    assert "\n" not in message
    assert "hunter2" not in message


def test_client_secret_is_not_in_the_settings_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, GOOGLE)
    assert "hunter2" not in repr(settings) + str(settings) + repr(settings.oidc_providers)


@pytest.mark.parametrize(
    ("url", "is_secure"),
    [
        ("https://id.example.com/x", True),
        ("http://127.0.0.1:9/x", True),
        ("http://localhost/x", True),
        ("http://id.example.com/x", False),
        ("http://localhost.example.com/x", False),
        ("https://user:password@id.example.com/x", False),
        ("https:///x", False),
        ("ftp://127.0.0.1/x", False),
        ("https://[::1", False),
        (None, False),
    ],
)
def test_credentials_are_sent_to_secure_urls_only(url: object, is_secure: bool) -> None:
    assert is_secure_url(url) == is_secure
