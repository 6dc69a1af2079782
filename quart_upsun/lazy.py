"""Lazy imports of a package's public names.

The deploy hook imports the models of every package while requests are held. Importing Quart,
PgQueuer and others, which it does not need, would take most of a second.
"""

import importlib
from collections.abc import Callable, Collection
from typing import Any


def exporter(
    package: str, names: Collection[str], modules: Collection[str]
) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package, which imports a public name on first access.

    Args:
        package: the name of the package.
        names: the public names of the package.
        modules: the modules that define these names, in the order in which to search.
    """

    def load(name: str) -> Any:
        if name in names:
            for module in modules:
                found = importlib.import_module(f"{package}.{module}")
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
