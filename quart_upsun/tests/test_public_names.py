"""The public API: names exist and have docstrings, and imports for the deploy hook stay cheap."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import quart_upsun

PACKAGES = [
    "quart_upsun",
    *(
        f"quart_upsun.{found.name}"
        for found in pkgutil.iter_modules(quart_upsun.__path__)
        if found.ispkg and found.name != "tests"
    ),
]
# Modules that the deploy hook imports while the router holds requests.
HOOK_IMPORTS = [
    "quart_upsun.__main__",
    "quart_upsun.database",
    "quart_upsun.settings",
    "quart_upsun.web.publish",
]
HEAVY = {"quart", "flask", "werkzeug", "hypercorn", "pgqueuer", "quart_schema"}


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_document_their_public_names(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__
    names: list[str] = package.__all__
    assert names
    assert len(names) == len(set(names))
    for each in names:
        value = getattr(package, each, None)
        if value is None:  # a submodule
            value = importlib.import_module(f"{name}.{each}")
        if inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, ModuleType):
            assert value.__doc__, f"{name}.{each}"


def test_unknown_names_raise_attribute_and_import_errors() -> None:
    with pytest.raises(ImportError):
        exec("from quart_upsun.jobs import nothing")  # noqa: S102
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = quart_upsun.jobs.nothing  # type: ignore[attr-defined]


def test_the_deploy_hook_does_not_import_quart() -> None:
    code = (
        f"import sys, {', '.join(HOOK_IMPORTS)}\n"
        "quart_upsun.database.load_models()\n"
        f"print(*sorted({HEAVY} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
