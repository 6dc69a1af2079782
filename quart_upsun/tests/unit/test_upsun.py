"""The environment and limits from the platform's variables and files."""

import base64
import json
from pathlib import Path

import pytest

from quart_upsun import platform as upsun
from quart_upsun.server.serve import processes_for

IN_CONTAINER = {"PLATFORM_APPLICATION_NAME": "app", "PLATFORM_ENVIRONMENT": "main-abc"}


def routes(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def origin(encoded: str) -> str | None:
    environment = upsun.environment({**IN_CONTAINER, "PLATFORM_ROUTES": encoded})
    assert environment is not None
    return environment.origin


def test_origin_is_the_primary_route_of_this_application() -> None:
    assert (
        origin(
            routes(
                {
                    "https://www.example.com/": {"primary": False, "type": "redirect"},
                    "https://api.example.com/": {
                        "primary": False,
                        "type": "upstream",
                        "upstream": "app:http",
                    },
                    "https://other.example.com/": {
                        "primary": True,
                        "type": "upstream",
                        "upstream": "other",
                    },
                    "http://example.com/": {"primary": True, "type": "upstream", "upstream": "app"},
                    "https://example.com/": {
                        "primary": True,
                        "type": "upstream",
                        "upstream": "app",
                    },
                }
            )
        )
        == "https://example.com"
    )


@pytest.mark.parametrize("encoded", ["", "%%%", "e30=", "W10=", routes({"https://x/": None})])
def test_invalid_routes_give_no_origin(encoded: str) -> None:
    assert origin(encoded) is None


def test_an_environment_of_unknown_type_is_not_a_preview() -> None:
    environment = upsun.environment(IN_CONTAINER)
    assert environment is not None
    assert environment.type == "unknown"
    assert not environment.is_preview


def test_container_limits(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert upsun.container_limits(path) is None
    path.write_text('{"info": {"limits": {"memory": 352, "cpu": 0.5}}}')
    assert upsun.container_limits(path) == upsun.ContainerLimits(memory=352, cpu=0.5)
    path.write_text('{"info": {"limits": {"memory": 352}}}')
    assert upsun.container_limits(path) == upsun.ContainerLimits(memory=352, cpu=1)
    for broken in ("", "[]", '{"info": null}', '{"info": {"limits": {"memory": "all"}}}'):
        path.write_text(broken)
        assert upsun.container_limits(path) is None


@pytest.mark.parametrize(
    ("memory", "cpu", "processes"),
    [(64, 0.1, 1), (224, 0.5, 1), (352, 0.5, 2), (1408, 1, 2), (2816, 2, 4), (4096, 8, 16)],
)
def test_number_of_processes_fits_the_container(memory: int, cpu: float, processes: int) -> None:
    assert processes_for(upsun.ContainerLimits(memory=memory, cpu=cpu)) == processes


def test_one_process_if_the_limits_are_unknown() -> None:
    assert processes_for(None) == 1
