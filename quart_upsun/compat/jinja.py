"""Private APIs of Jinja 3.1 and MarkupSafe 3.0."""

from types import CoroutineType, FunctionType, MethodType
from typing import Any, NoReturn

from jinja2 import Template, runtime
from jinja2.environment import TemplateModule
from jinja2.runtime import Context, Macro
from markupsafe import Markup, _escape_inner  # type: ignore[attr-defined] # private
from markupsafe import escape as escape_markup

FUNCTIONS = frozenset({FunctionType, MethodType})


class FastContext(Context):
    """Calls macros and functions without looking at each call for what hardly any of them has.

    A call that returns a coroutine is passed to `refuse_coroutine()`.
    """

    def call(__self, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 as its parent
        kind = type(__obj)
        if kind in FUNCTIONS and not hasattr(__obj, "jinja_pass_arg"):
            kwargs.pop("_block_vars", None)
            kwargs.pop("_loop_vars", None)
            result = __obj(*args, **kwargs)
        elif kind is Macro:
            kwargs.pop("_block_vars", None)
            kwargs.pop("_loop_vars", None)
            return __obj(__self.eval_ctx, *args, **kwargs)
        else:
            result = super().call(__obj, *args, **kwargs)
        if type(result) is CoroutineType:
            __self.refuse_coroutine(__obj, result)
        return result

    def refuse_coroutine(self, called: Any, coroutine: "CoroutineType[Any, Any, Any]") -> NoReturn:
        """Raise an error for a call whose result would have to be awaited."""
        raise NotImplementedError


class FastTemplate(Template):
    """Makes the module of an imported template once.

    Jinja compares all names of globals for each import, in case that a template has its own.
    """

    def _get_default_module(self, ctx: Context | None = None) -> TemplateModule:
        if ctx is not None and len(ctx.globals_keys) == len(self.environment.globals):
            ctx = None
        return super()._get_default_module(ctx)


def escape(value: Any) -> str:
    """Return a value as it is written to a page, escaped unless it is `Markup`.

    MarkupSafe makes a `Markup` of each result, which takes twenty times as long as escaping. A
    template joins its output to one string and needs no more than a `str`.
    """
    kind = type(value)
    if kind is str:
        escaped: str = _escape_inner(value)
        return escaped
    if kind is Markup:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return str(value)
    return escape_markup(value)


def speed_up_escaping() -> None:
    """Let templates that are loaded from now on write their output with `escape()`."""
    runtime.escape = escape  # type: ignore[attr-defined, assignment]
