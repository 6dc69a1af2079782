"""Public names of a package that are imported when they are asked for.

A deploy hook imports the models of every package while requests are held. Quart, PgQueuer and the
rest, which it does not need, would take most of a second.
"""

import importlib
from collections.abc import Callable, Collection
from typing import Any


def exporter(
    package: str, names: Collection[str], modules: Collection[str]
) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that finds its public names in its modules.

    Args:
        package: the name of the package.
        names: what it exports.
        modules: the modules of the package that define these names, in the order of the search.
    """

    def find(name: str) -> Any:
        if name in names:
            for module in modules:
                found = importlib.import_module(f"{package}.{module}")
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
