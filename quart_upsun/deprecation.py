"""Keep the old name of a renamed function for one release, with a warning.

    clean_text = renamed(clean, "quart_upsun.text.clean_text", removed_in="0.3.0")

Python hides the warnings except in tests. There they are shown in the summary, and do not fail a
test: see `filterwarnings` in pyproject.toml.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class ToolkitDeprecationWarning(DeprecationWarning):
    """A deprecated name of the toolkit is in use. The message says what replaces it."""


def renamed(
    function: Callable[Parameters, Result], old: str, *, removed_in: str
) -> Callable[Parameters, Result]:
    """Return a function for the old name, which warns and calls the renamed function.

    Args:
        function: the function under its new name; sync or async.
        old: the full old name, such as `quart_upsun.text.clean_text`.
        removed_in: the release that removes the old name, such as `0.3.0`.
    """
    new = f"{function.__module__}.{function.__qualname__}"
    message = f"{old}() is deprecated and will be removed in release {removed_in}; use {new}()."

    def warn() -> None:
        # The caller of the old name: above this function and the one below.
        warnings.warn(message, ToolkitDeprecationWarning, stacklevel=3)

    if inspect.iscoroutinefunction(function):
        # Also a coroutine function, because Quart runs any other function in a thread.
        @functools.wraps(function)
        async def old_coroutine(*args: Any, **kwargs: Any) -> Any:
            warn()
            return await function(*args, **kwargs)

        old_function: Callable[..., Any] = old_coroutine
    else:

        @functools.wraps(function)
        def old_plain(*args: Any, **kwargs: Any) -> Any:
            warn()
            return function(*args, **kwargs)

        old_function = old_plain
    module, _, name = old.rpartition(".")
    old_function.__module__, old_function.__qualname__ = module, name
    old_function.__name__ = name
    return cast(Callable[Parameters, Result], old_function)
