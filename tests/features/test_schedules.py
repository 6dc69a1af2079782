"""Scheduled jobs."""

import importlib
import pkgutil

from quart import Quart

import app as app_package
import quart_upsun as toolkit
from quart_upsun.jobs.queue import Schedule, Task
from quart_upsun.jobs.runner import Runner


def test_every_task_and_schedule_is_registered(app: Quart) -> None:
    """A task that is not registered would never run, and nothing would report it."""
    runner: Runner = app.extensions["quart_upsun"].jobs
    defined: set[str] = set()
    for info in (
        *pkgutil.walk_packages(app_package.__path__, "app."),
        *pkgutil.walk_packages(toolkit.__path__, "quart_upsun."),
    ):
        if not info.name.endswith("__main__") and ".tests" not in info.name:
            for value in vars(importlib.import_module(info.name)).values():
                for each in value if isinstance(value, tuple | list) else [value]:
                    match each:
                        case Task():
                            defined.add(each.name)
                        case Schedule():
                            defined.add(each.task.name)
    assert "mail" in defined
    assert defined == {*runner.tasks}
