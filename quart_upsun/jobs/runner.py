"""Run background jobs and schedules with PgQueuer."""

import asyncio
import json
import logging
import math
import secrets
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from quart import Quart

from quart_upsun.compat import pgqueuer
from quart_upsun.compat.pgqueuer import (
    EntrypointExecutor,
    EntrypointExecutorParameters,
    Queries,
    QueueExecutionMode,
    QueueManager,
    RetryRequested,
    SchedulerManager,
)
from quart_upsun.database import Database, DatabaseUnavailableError, pool_timeout
from quart_upsun.database.ownership import Identity
from quart_upsun.database.usage import current_use
from quart_upsun.jobs.connection import ReconnectingDriver
from quart_upsun.jobs.pgqueuer_queries import JobQueries, RequeueError
from quart_upsun.jobs.queue import (
    JobContext,
    JobError,
    JobPostponedError,
    JobTakenOverError,
    PermanentJobError,
    Schedule,
    Task,
    enqueue,
)
from quart_upsun.logging import get_logger
from quart_upsun.measure import JobMeasure, Observer, end_measure
from quart_upsun.time_limits import time_limit

log = get_logger(__name__)

BATCH_SIZE = 100  # jobs that one statement claims
MAX_CONCURRENT_JOBS = 1200  # per process; most of them wait for the network
# New jobs are announced with NOTIFY. Polling finds jobs whose worker has died.
POLL_INTERVAL = timedelta(seconds=5)
DRAIN_POLL_INTERVAL = timedelta(seconds=0.02)
# After this time without a heartbeat, a worker counts as dead and its jobs are retried.
HEARTBEAT_TIMEOUT = timedelta(seconds=20)
RESTART_SECONDS = 1.0
# Jobs that still run after this time are requeued at shutdown. On Upsun a worker has 15 seconds to
# exit, a web container less than 10.
SHUTDOWN_SECONDS = 5.0
MAX_REASON_LENGTH = 500  # characters


class JobFailedError(Exception):
    """The job has failed permanently. The message is the error of the last attempt."""


class Runner:
    """Runs the jobs of one process.

    Args:
        app: tasks run in its application context.
        database: the database. The queue has a connection of its own to it.
        identity: the environment of this process. Jobs of other environments are not run.
        observers: they get the measure of each attempt at its end.

    Attributes:
        tasks: the registered tasks by name.
        schedules: the registered schedules.
        on_start: called when an attempt begins, in its context, with the headers of the job.
    """

    def __init__(
        self,
        app: Quart,
        database: Database,
        identity: Identity,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._app = app
        self._database = database
        self._identity = identity
        self._observers = observers
        self.tasks: dict[str, Task] = {}
        self.schedules: list[Schedule] = []
        self.on_start: list[Callable[[JobMeasure, Mapping[str, Any] | None], None]] = []
        self._stopping = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._postponed: dict[int, JobPostponedError] = {}
        self._reported: dict[str, float] = {}  # outages, for the driver

    def register(self, *additions: Task | Schedule) -> None:
        """Register tasks, and schedules with their tasks.

        Raises:
            ValueError: another task has the same name.
        """
        for each in additions:
            task = each.task if isinstance(each, Schedule) else each
            if self.tasks.setdefault(task.name, task) is not task:
                raise ValueError(f"another task is already named {task.name!r}")
            if isinstance(each, Schedule):
                self.schedules.append(each)

    @property
    def is_stopping(self) -> bool:
        """Whether the runner has been told to stop."""
        return self._stopping.is_set()

    @property
    def running_count(self) -> int:
        """The number of running jobs."""
        return len(self._attempts)

    def stop(self) -> None:
        """Start no more jobs; after `SHUTDOWN_SECONDS`, requeue those that still run."""
        if not self._stopping.is_set():
            self._stopping.set()
            asyncio.get_running_loop().call_later(SHUTDOWN_SECONDS, self._requeue)

    async def run(self) -> None:
        """Run jobs until stopped.

        It survives outages of the database, and waits for the migrations of its release.
        """
        while not self._stopping.is_set():
            try:
                await self._work()
            except Exception as error:
                if not self._stopping.is_set():
                    log.warning("job queue restarting", reason=_error_names(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RESTART_SECONDS)

    async def run_due(self) -> None:
        """Run all jobs that are due, then return; for tests."""
        await self._work(QueueExecutionMode.drain)

    async def _work(self, mode: QueueExecutionMode = QueueExecutionMode.continuous) -> None:
        driver = ReconnectingDriver(self._database, self._stopping, self._identity, self._reported)
        queries = JobQueries(
            driver, self._database, self._postponed, self._app.extensions["quart_upsun"].switches
        )
        queue, schedules = self._queue(queries), self._scheduler(queries)
        stop = asyncio.create_task(self._stop_when_told(driver, queue, schedules))
        try:
            async with asyncio.TaskGroup() as group:
                if mode is QueueExecutionMode.continuous and self.schedules:
                    group.create_task(schedules.run())
                await queue.run(
                    # In drain mode the end of the queue is only found by polling.
                    dequeue_timeout=POLL_INTERVAL
                    if mode is QueueExecutionMode.continuous
                    else DRAIN_POLL_INTERVAL,
                    batch_size=BATCH_SIZE,
                    mode=mode,
                    max_concurrent_tasks=MAX_CONCURRENT_JOBS,
                    shutdown_on_listener_failure=True,
                    heartbeat_timeout=HEARTBEAT_TIMEOUT,
                    log_aggregation_interval=timedelta(0),
                )
                schedules.shutdown.set()
        finally:
            stop.cancel()
            await driver.close()

    async def _stop_when_told(
        self, driver: ReconnectingDriver, queue: QueueManager, schedules: SchedulerManager
    ) -> None:
        await self._stopping.wait()
        driver.hurry()
        queue.shutdown.set()
        schedules.shutdown.set()

    def _queue(self, queries: Queries) -> QueueManager:
        queue = QueueManager(queries)
        for task in self.tasks.values():
            queue.register_executor(
                task.name,
                EntrypointExecutor(
                    EntrypointExecutorParameters(
                        concurrency_limit=task.max_concurrent,
                        func=self._entrypoint(task),
                        on_failure="hold" if task.is_kept_after_failure else "delete",
                    )
                ),
            )
        return queue

    def _scheduler(self, queries: Queries) -> SchedulerManager:
        scheduler = SchedulerManager(queries)
        for each in self.schedules:
            scheduler.schedule(each.task.name, each.cron, clean_old=False, accepts_context=False)(
                self._enqueuer(each.task)
            )
        return scheduler

    def _enqueuer(self, task: Task) -> Callable[[pgqueuer.Schedule], Awaitable[None]]:
        async def enqueue_task(schedule: pgqueuer.Schedule) -> None:
            # A schedule only enqueues a job, so that it gets retries and a time limit.
            async with self._database.write() as session:
                # If the job of an earlier run is waiting for a retry, it becomes due now.
                await enqueue(session, task, key=task.name)

        return enqueue_task

    def _entrypoint(self, task: Task) -> Callable[[pgqueuer.Job], Awaitable[None]]:
        async def attempt(job: pgqueuer.Job) -> None:
            if self._stopping.is_set():  # claimed just before the process was told to stop
                raise RequeueError
            # No client waits for a job, so it may wait for a pooled connection without limit. Each
            # attempt runs in its own context.
            pool_timeout.set(math.inf)
            running = JobContext(
                id=job.id,
                data=json.loads(job.payload or b"{}"),
                attempt=job.attempts + 1,
                database=self._database,
                owner=str(job.queue_manager_id),
                priority=job.priority,
            )
            measure = _measure(task, job, running)
            for begin in self.on_start:
                begin(measure, job.headers)
            limit = asyncio.timeout(task.timeout)
            time_limit.set(limit)
            work = asyncio.create_task(self._run(task, running))
            self._attempts.add(work)
            try:
                async with limit:
                    await work
            except JobTakenOverError:
                measure.outcome = "taken over"
                log.info("job taken over", task=task.name, job_id=job.id)
            except JobPostponedError as error:
                measure.outcome = "postponed"
                self._postponed[job.id] = error
                raise RequeueError(error.after) from None
            except asyncio.CancelledError:
                measure.outcome = "requeued"
                # PgQueuer would treat a cancellation as the deletion of the job.
                raise RequeueError from None
            except Exception as error:
                is_last = _is_last_attempt(task, running, error)
                measure.outcome = "failed" if is_last else "retried"
                await self._handle_failure(task, running, error, is_last=is_last)
            finally:
                self._attempts.discard(work)
                end_measure(measure, self._observers)

        return attempt

    async def _run(self, task: Task, running: JobContext) -> None:
        async with self._app.app_context():
            await task.run(running)

    async def _handle_failure(
        self, task: Task, running: JobContext, error: Exception, *, is_last: bool
    ) -> None:
        """Retry the job, or fail it permanently.

        Raises:
            RetryRequested: the job is to be retried.
            JobFailedError: the job has failed permanently.
        """
        # The message may contain user input, so it goes into the job's history, not into the log.
        message = _error_message(error)
        about: dict[str, Any] = {
            "task": task.name,
            "job_id": running.id,
            **{name: running.data.get(name) for name in task.logged_fields},
            "attempt": running.attempt,
            "reason": error.code if isinstance(error, JobError) else type(error).__name__,
        }
        known = isinstance(error, JobError | TimeoutError | DatabaseUnavailableError)
        if not known and (frames := traceback.extract_tb(error.__traceback__)):
            about["where"] = f"{frames[-1].filename}:{frames[-1].lineno}"
        if is_last:
            log.error("job failed permanently", **about)
            if task.on_failure is not None:
                async with self._app.app_context():
                    await task.on_failure(running, message)
            raise JobFailedError(message) from None
        delay = task.backoff_seconds[running.attempt - 1]
        log.warning("job attempt failed", **about, retry_in_seconds=delay)
        raise RetryRequested(timedelta(seconds=delay), message) from None

    def _requeue(self) -> None:
        if self._attempts:
            log.info("jobs requeued", count=len(self._attempts))
        for work in self._attempts:
            work.cancel()


def init_app(
    app: Quart,
    database: Database,
    identity: Identity,
    draining: asyncio.Event,
    *,
    serves: bool,
    observers: Sequence[Observer] = (),
) -> Runner:
    """Create the runner; if server processes run jobs, run it while the application serves.

    Args:
        app: the application.
        database: the database with the jobs.
        identity: the environment of this process.
        draining: set when the process is told to stop.
        serves: whether server processes run jobs.
        observers: they get the measure of each attempt.
    """
    runner = Runner(app, database, identity, observers)
    # PgQueuer would log each failure a second time, with its message.
    logging.getLogger("pgqueuer").addFilter(_should_log)
    if serves:
        # Unlike an `after_serving` function, this always ends before the database is closed.
        @app.while_serving
        async def work() -> AsyncGenerator[None, None]:
            running = asyncio.create_task(runner.run())
            stopping = asyncio.create_task(draining.wait())
            stopping.add_done_callback(lambda _: runner.stop())
            yield
            stopping.cancel()
            runner.stop()
            await running

    return runner


def _measure(task: Task, job: pgqueuer.Job, running: JobContext) -> JobMeasure:
    """Begin to measure an attempt, in its own context."""
    # The clock of the database may be ahead of this one's.
    waited = (datetime.now(UTC) - max(job.created, job.execute_after)).total_seconds()
    trace_id = secrets.token_hex(16)
    structlog.contextvars.bind_contextvars(trace_id=trace_id)
    measure = JobMeasure(task.name, running.id, running.attempt, max(0.0, waited), trace_id)
    current_use.set(measure.database)
    return measure


def _is_last_attempt(task: Task, running: JobContext, error: Exception) -> bool:
    return isinstance(error, PermanentJobError) or running.attempt > len(task.backoff_seconds)


def _should_log(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and not record.msg.startswith("Exception while proc")


def _error_names(error: BaseException) -> str:
    """Return the name of an exception, or the names of those in an exception group."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({_error_names(each) for each in error.exceptions}))
    return type(error).__name__


def _error_message(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "Timed out."
    message = str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
    # The response of another server may have any encoding; PostgreSQL accepts UTF-8 without NUL.
    return message.replace("\0", "").encode("utf-8", "replace").decode()[:MAX_REASON_LENGTH]
