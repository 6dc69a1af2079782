"""The test suites of `make test` and `make test-all`."""

import tomllib

from app.settings import ROOT

SLOW = {
    f"tests/{name}"
    for name in (
        "assets",
        "browser",
        "deploy",
        "development",
        "from_flask",
        "migrations",
        "platform",
        "process",
    )
}


def test_make_test_runs_all_but_the_slow_suites() -> None:
    pytest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    listed = set(pytest["ini_options"]["testpaths"])
    existing = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("tests/*/__init__.py")}
    assert listed | SLOW == existing
    assert not listed & SLOW
