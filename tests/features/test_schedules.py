"""What is done by itself, again and again."""

import importlib
import pkgutil

from quart import Quart

import app as app_package
import quart_upsun as toolkit
from quart_upsun.jobs.queue import Schedule, Task
from quart_upsun.jobs.runner import Runner


def test_all_that_is_scheduled_comes_round(app: Quart) -> None:
    """What no list in `create_app` names would never be done, and nobody would miss it for long."""
    runner: Runner = app.extensions["quart_upsun"].jobs
    written: set[str] = set()
    for info in (
        *pkgutil.walk_packages(app_package.__path__, "app."),
        *pkgutil.walk_packages(toolkit.__path__, "quart_upsun."),
    ):
        if not info.name.endswith("__main__") and ".tests" not in info.name:
            for value in vars(importlib.import_module(info.name)).values():
                for each in value if isinstance(value, tuple | list) else [value]:
                    match each:
                        case Task():
                            written.add(each.name)
                        case Schedule():
                            written.add(each.task.name)
    assert "mail" in written
    assert written == {*runner.tasks}
