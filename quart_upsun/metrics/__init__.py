"""Measures of requests and jobs: a log line for slow ones, and metrics of all processes.

An object with `on_request` and `on_job` in the list `observers` of the toolkit's state gets each
measure; see `quart_upsun.measure`.
"""

__all__ = ["charts", "collector", "event_log", "rollup", "series"]  # modules
