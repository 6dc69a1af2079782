"""Login providers, configured by the variables `OIDC_<NAME>_…`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
)

PREFIX = "OIDC_"
FIELDS = ("CLIENT_ID", "CLIENT_SECRET", "DISCOVERY_URL", "LABEL", "SCOPES")
VARIABLE = re.compile(rf"{PREFIX}([A-Z0-9]+(?:_[A-Z0-9]+)*)_({'|'.join(FIELDS)})")
DISCOVERY_PATH = "/.well-known/openid-configuration"  # OpenID Connect Discovery 1.0, section 4
NAME_LENGTH = 30
LABEL_LENGTH = 40
GITHUB = "https://github.com"


class Provider(BaseModel):
    """A provider with which users can log in."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    """Identifies the provider in URLs and in the database: `google` for OIDC_GOOGLE_CLIENT_ID."""
    label: str
    """The name that users see."""
    client_id: str
    client_secret: SecretStr
    scopes: str
    protocol: Literal["openid", "github"] = "openid"
    discovery_url: str = ""
    proves: bool = True
    """Whether the provider can ask the user to log in again, and says when they did."""
    github: str = GITHUB
    github_api: str = "https://api.github.com"


# What the variables need not say about well-known providers.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Neither says when the user has logged in last.
    "google": {
        "label": "Google",
        "discovery_url": f"https://accounts.google.com{DISCOVERY_PATH}",
        "proves": False,
    },
    "github": {
        "label": "GitHub",
        "protocol": "github",
        "scopes": "read:user user:email",
        "proves": False,
    },
    "gitlab": {"label": "GitLab", "discovery_url": f"https://gitlab.com{DISCOVERY_PATH}"},
    "microsoft": {
        "label": "Microsoft",
        "discovery_url": f"https://login.microsoftonline.com/common/v2.0{DISCOVERY_PATH}",
    },
}


class ProviderVariables(EnvSettingsSource):
    """Collects the variables of all providers, whose names no field can declare."""

    def __call__(self) -> dict[str, Any]:
        prefix = PREFIX.lower()  # the source has lower-cased the names
        found = {
            name.upper(): value
            for name, value in self.env_vars.items()
            if name.startswith(prefix) and value
        }
        return {"oidc_providers": found} if found else {}


class ProviderSettings(BaseSettings):
    """The part of the settings that this feature adds."""

    oidc_providers: Annotated[tuple[Provider, ...], NoDecode] = Field(
        default=(),
        exclude=True,  # no variable of this name
        description="Login providers; read from OIDC_<NAME>_CLIENT_ID and others",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, ProviderVariables(settings_cls), env_settings

    @model_validator(mode="before")
    @classmethod
    def _read_providers(cls, values: Any) -> Any:
        # Here and not in a validator of the field, so that messages name the variable.
        if isinstance(values, dict) and isinstance(values.get("oidc_providers"), Mapping):
            return {**values, "oidc_providers": parse_providers(values["oidc_providers"])}
        return values


def parse_providers(variables: Mapping[str, str]) -> tuple[Provider, ...]:
    """Return the providers that variables describe, sorted by label.

    Args:
        variables: the values of all variables that start with OIDC_, by name.

    Raises:
        ValueError: a variable is unknown, missing or invalid. The message names it, and contains
            no value.
    """
    found: dict[str, dict[str, str]] = {}
    for variable, value in sorted(variables.items()):
        match = VARIABLE.fullmatch(variable)
        if match is None:
            endings = ", ".join(f"_{each}" for each in FIELDS)
            raise ValueError(f"{variable} is unknown. Use OIDC_<NAME> and one of {endings}")
        found.setdefault(match[1], {})[match[2].lower()] = value.strip()
    providers = [_parse_provider(f"{PREFIX}{name}", name, each) for name, each in found.items()]
    return tuple(sorted(providers, key=lambda each: each.label.lower()))


def _parse_provider(prefix: str, variable_name: str, given: Mapping[str, str]) -> Provider:
    name = variable_name.lower().replace("_", "-")
    if len(name) > NAME_LENGTH:
        raise ValueError(f"{prefix}_CLIENT_ID: the name must have at most {NAME_LENGTH} characters")
    preset = PRESETS.get(name, {})
    values: dict[str, Any] = {
        "label": variable_name.replace("_", " ").title(),
        "scopes": "openid email profile",
        **preset,
        **{key: value for key, value in given.items() if value},
    }
    for required in ("client_id", "client_secret"):
        if not values.get(required):
            raise ValueError(f"{prefix}_{required.upper()} is not set")
    if preset.get("protocol") == "github":
        if "discovery_url" in given:
            raise ValueError(f"{prefix}_DISCOVERY_URL cannot be set: GitHub has no discovery")
    else:
        _check_openid(prefix, values)
    if len(values["label"]) > LABEL_LENGTH or not values["label"].isprintable():
        raise ValueError(f"{prefix}_LABEL must have at most {LABEL_LENGTH} printable characters")
    return Provider(name=name, **values)


def _check_openid(prefix: str, values: Mapping[str, Any]) -> None:
    url = values.get("discovery_url")
    if not url:
        raise ValueError(
            f"{prefix}_DISCOVERY_URL is not set. Set it to https://…{DISCOVERY_PATH},"
            f" or use a name with a preset: {', '.join(PRESETS).upper()}"
        )
    if not url.endswith(DISCOVERY_PATH) or not is_secure_url(url):
        raise ValueError(f"{prefix}_DISCOVERY_URL must be https://…{DISCOVERY_PATH}")
    if "openid" not in values["scopes"].split():
        raise ValueError(f"{prefix}_SCOPES must contain openid, separated by spaces")


def is_secure_url(url: object) -> bool:
    """Tell whether a URL is safe for credentials: https, or http on this machine."""
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if not parts.hostname or parts.username is not None:
        return False
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    )
