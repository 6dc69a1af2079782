"""Does what is due: PgQueuer's managers around our tasks, for as long as the process lives."""

import asyncio
import json
import logging
import math
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

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
from quart_upsun.time_limits import time_limit

log = get_logger(__name__)

# Jobs begun in one statement, and under way in one process: they wait for the network, mostly.
BATCH_SIZE = 100
MAX_CONCURRENT_JOBS = 1200
# The queue says itself when there is something to begin; but not when a worker has died.
POLL_INTERVAL = timedelta(seconds=5)
DRAIN_POLL_INTERVAL = timedelta(seconds=0.02)
# A worker that has not been heard of for so long is dead, and its jobs are begun again.
HEARTBEAT_TIMEOUT = timedelta(seconds=20)
RESTART_SECONDS = 1.0  # seconds
# What is under way when the process stops may take so long; then it is put back. A worker of Upsun
# has 15 seconds, a web container less than 10.
SHUTDOWN_SECONDS = 5.0
MAX_REASON_LENGTH = 500  # characters of a reason


class JobGivenUpError(Exception):
    """No further attempt is made; the words say why the last one failed."""


class Runner:
    """One process's share in the work.

    Args:
        app: in whose context tasks run.
        database: where they find their data; the queue has a connection of its own to it.
        identity: the environment of this process, whose jobs alone it runs.

    Attributes:
        tasks: all that were registered, by name.
    """

    def __init__(self, app: Quart, database: Database, identity: Identity) -> None:
        self._app = app
        self._database = database
        self._identity = identity
        self.tasks: dict[str, Task] = {}
        self._schedules: list[Schedule] = []
        self._stopping = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._postponed: dict[int, JobPostponedError] = {}
        self._reported: dict[str, float] = {}  # outages, for the driver

    def register(self, *additions: Task | Schedule) -> None:
        """Add tasks that can be enqueued, and schedules with theirs.

        Raises:
            ValueError: another task has the same name.
        """
        for each in additions:
            task = each.task if isinstance(each, Schedule) else each
            if self.tasks.setdefault(task.name, task) is not task:
                raise ValueError(f"there are two tasks called {task.name!r}")
            if isinstance(each, Schedule):
                self._schedules.append(each)

    @property
    def is_stopping(self) -> bool:
        """Whether nothing more is begun."""
        return self._stopping.is_set()

    @property
    def running_count(self) -> int:
        """How many jobs are being done."""
        return len(self._attempts)

    def stop(self) -> None:
        """Begin nothing more; put back what is not done in `SHUTDOWN_SECONDS` seconds."""
        if not self._stopping.is_set():
            self._stopping.set()
            asyncio.get_running_loop().call_later(SHUTDOWN_SECONDS, self._put_back)

    async def run(self) -> None:
        """Work until stopped, whatever happens to the database meanwhile.

        A worker may start before its release's migrations, and waits for them.
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
        """Do what is due now, and return when nothing is: for tests."""
        await self._work(QueueExecutionMode.drain)

    async def _work(self, mode: QueueExecutionMode = QueueExecutionMode.continuous) -> None:
        driver = ReconnectingDriver(self._database, self._stopping, self._identity, self._reported)
        queries = JobQueries(driver, self._database, self._postponed)
        queue, schedules = self._queue(queries), self._scheduler(queries)
        stop = asyncio.create_task(self._stop_when_told(queue, schedules))
        try:
            async with asyncio.TaskGroup() as group:
                if mode is QueueExecutionMode.continuous and self._schedules:
                    group.create_task(schedules.run())
                await queue.run(
                    # The end of a queue is not announced.
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

    async def _stop_when_told(self, queue: QueueManager, schedules: SchedulerManager) -> None:
        await self._stopping.wait()
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
        for each in self._schedules:
            scheduler.schedule(each.task.name, each.cron, clean_old=False, accepts_context=False)(
                self._enqueuer(each.task)
            )
        return scheduler

    def _enqueuer(self, task: Task) -> Callable[[pgqueuer.Schedule], Awaitable[None]]:
        async def put_into_queue(schedule: pgqueuer.Schedule) -> None:
            # As a job it has what jobs have: attempts, a time limit, a place to end in.
            async with self._database.write() as session:
                # An earlier tick's job that failed and backs off takes this tick: it is due now.
                await enqueue(session, task, key=task.name)

        return put_into_queue

    def _entrypoint(self, task: Task) -> Callable[[pgqueuer.Job], Awaitable[None]]:
        async def attempt(job: pgqueuer.Job) -> None:
            if self._stopping.is_set():  # it was claimed just when the process was told to end
                raise RequeueError
            # It shares the connections with very many, and nobody waits for its answer: it waits
            # for one as long as it takes. Each attempt has a context of its own.
            pool_timeout.set(math.inf)
            running = JobContext(
                id=job.id,
                data=json.loads(job.payload or b"{}"),
                attempt=job.attempts + 1,
                database=self._database,
                owner=str(job.queue_manager_id),
                priority=job.priority,
            )
            limit = asyncio.timeout(task.timeout)
            time_limit.set(limit)
            work = asyncio.create_task(self._run(task, running))
            self._attempts.add(work)
            try:
                async with limit:
                    await work
            except JobTakenOverError:
                log.info("job taken over", task=task.name, job_id=job.id)
            except JobPostponedError as error:
                self._postponed[job.id] = error
                raise RequeueError(error.after) from None
            except asyncio.CancelledError:
                # Let through, PgQueuer would take it for the wish that the job be never done.
                raise RequeueError from None
            except Exception as error:
                await self._failed(task, running, error)
            finally:
                self._attempts.discard(work)

        return attempt

    async def _run(self, task: Task, running: JobContext) -> None:
        async with self._app.app_context():
            await task.run(running)

    async def _failed(self, task: Task, running: JobContext, error: Exception) -> None:
        """Ask for another attempt, or give up.

        Raises:
            RetryRequested: for another one.
            JobGivenUpError: that was the last.
        """
        # Words may hold what people typed: they go into the job's own log, and not into ours.
        words = _error_reason(error)
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
        if isinstance(error, PermanentJobError) or running.attempt > len(task.backoff_seconds):
            log.error("job failed permanently", **about)
            if task.on_failure is not None:
                async with self._app.app_context():
                    await task.on_failure(running, words)
            raise JobGivenUpError(words) from None
        wait = task.backoff_seconds[running.attempt - 1]
        log.warning("job attempt failed", **about, retry_in_seconds=wait)
        raise RetryRequested(timedelta(seconds=wait), words) from None

    def _put_back(self) -> None:
        if self._attempts:
            log.info("jobs requeued", count=len(self._attempts))
        for work in self._attempts:
            work.cancel()


def init_app(
    app: Quart, database: Database, identity: Identity, draining: asyncio.Event, *, serves: bool
) -> Runner:
    """Make the runner; where there is no worker for it, work while the application serves.

    Args:
        app: the application.
        database: where the jobs are.
        identity: the environment of this process, which may not be the database's.
        draining: set when the process is told to stop.
        serves: whether server processes run jobs.
    """
    runner = Runner(app, database, identity)
    # It would tell what went wrong a second time, and with the words.
    logging.getLogger("pgqueuer").addFilter(_should_log)
    if serves:
        # Unlike an `after_serving` function this ends before the database is closed, whatever the
        # order in which they are registered.
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


def _should_log(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and not record.msg.startswith("Exception while proc")


def _error_names(error: BaseException) -> str:
    """Return the name of what was raised, or of what a group holds."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({_error_names(each) for each in error.exceptions}))
    return type(error).__name__


def _error_reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "It took too long."
    words = str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
    # What a stranger's server answers may be in any encoding; PostgreSQL takes UTF-8, and no NUL.
    return words.replace("\0", "").encode("utf-8", "replace").decode()[:MAX_REASON_LENGTH]
