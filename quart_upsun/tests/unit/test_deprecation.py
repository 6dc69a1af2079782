"""Deprecated names of functions."""

import inspect
import warnings

import pytest

from quart_upsun.deprecation import ToolkitDeprecationWarning, renamed


def add(first: int, second: int = 1) -> int:
    """Add two numbers."""
    return first + second


async def fetch(name: str) -> str:
    return name.upper()


plus = renamed(add, "quart_upsun.numbers.plus", removed_in="0.3.0")
load = renamed(fetch, "quart_upsun.numbers.load", removed_in="0.3.0")


def test_old_name_warns_and_calls_the_function() -> None:
    with pytest.warns(ToolkitDeprecationWarning) as caught:
        assert plus(1, second=2) == 3
    (warning,) = caught
    assert str(warning.message) == (
        "quart_upsun.numbers.plus() is deprecated and will be removed in release 0.3.0; use"
        f" {__name__}.add()."
    )
    assert warning.filename == __file__  # the caller
    assert (plus.__name__, plus.__module__) == ("plus", "quart_upsun.numbers")
    assert plus.__doc__ == "Add two numbers."
    assert inspect.signature(plus) == inspect.signature(add)


async def test_old_name_of_a_coroutine_function_stays_one() -> None:
    assert inspect.iscoroutinefunction(load)
    with pytest.warns(ToolkitDeprecationWarning) as caught:
        assert await load("ada") == "ADA"
    assert [warning.filename for warning in caught] == [__file__]


def test_new_name_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert add(1) == 2


def test_tests_show_the_warning_and_pass(pytestconfig: pytest.Config) -> None:
    """All other warnings fail a test."""
    filters = pytestconfig.getini("filterwarnings")
    assert filters[0] == "error"
    name = f"{ToolkitDeprecationWarning.__module__}.{ToolkitDeprecationWarning.__name__}"
    assert f"default::{name}" in filters
