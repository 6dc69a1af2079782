"""The environment variables of containers."""

import base64
import json
from pathlib import Path

from rehearsal.configuration import parse
from rehearsal.variables import build_variables

CONFIG = """\
applications:
  app:
    type: python:3.13
    variables:
      env:
        uv_CACHE_DIR: /tmp/uv
        DEBUG: false
        CACHE: false
        PORTS: [1, 2]
        EMPTY:
        LIMITS: {b: 1, a: x}
      stuff:
        COLORS: {red: "#f00"}
"""


def test_variables_of_the_configuration(tmp_path: Path) -> None:
    found = build_variables(
        parse(CONFIG),
        "app",
        release="1",
        entropy="2",
        directory="/app",
        cache=str(tmp_path),
        variables={"DEBUG": "true"},
    )
    assert found["UV_CACHE_DIR"] == "/tmp/uv"
    assert found["DEBUG"] == "true"  # set outside the configuration
    assert found["CACHE"] == "false"
    assert found["PORTS"] == "[1, 2]"
    assert found["EMPTY"] == ""
    assert found["LIMITS"] == '{"a": "x", "b": 1}'
    assert json.loads(base64.b64decode(found["PLATFORM_VARIABLES"])) == {
        "stuff:COLORS": {"red": "#f00"}
    }
