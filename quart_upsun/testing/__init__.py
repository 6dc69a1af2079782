"""Helpers for testing an application: servers, databases, mail, background jobs."""

from quart import Quart

from quart_upsun.extension import ToolkitState
from quart_upsun.jobs.queue import Schedule, Task
from quart_upsun.jobs.runner import Runner

__all__ = ["runner_of"]


def runner_of(app: Quart, *additions: Task | Schedule) -> Runner:
    """Return a job runner with only these tasks and schedules, on the application's database."""
    state: ToolkitState = app.extensions["quart_upsun"]
    runner = Runner(app, state.database, state.identity, state.observers)
    runner.register(*additions)
    return runner
