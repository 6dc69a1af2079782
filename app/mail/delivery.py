"""Takes what is due out of the outbox, renders it, and hands it to a transport.

Every process of every instance does this, and none needs to know of the others: a mail belongs to
who claims it, for as long as its lease lasts. A process that is killed loses nothing.
"""

import asyncio
import traceback
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import Any, NamedTuple

from quart import Quart, current_app
from sqlalchemy import delete, func, select, update

from app import logs
from app.database import Database, Unavailable
from app.mail import rendering
from app.mail.models import Mail
from app.mail.outbox import Composers
from app.mail.transports import Console, Failed, Outgoing, Refused, Transport, choose
from app.settings import Settings

log = logs.get(__name__)

# Seconds. What was posted in this process is begun at once; the poll finds what is due again, and
# what processes left behind that are no more.
POLL = 15.0
LEASE = 300.0  # longer than any attempt takes
FINISH = 3.0  # what is being sent when the process stops may take so long

AT_ONCE = 4  # mails a process sends at the same time

# Seconds from one attempt to the next, about a day in all.
BACK_OFF = (30, 120, 600, 3600, 4 * 3600, 6 * 3600, 12 * 3600)
ATTEMPTS = len(BACK_OFF) + 1

# Seconds before writing down what became of a mail is tried again. Without this note it would be
# sent a second time.
SETTLE_PAUSES = (0.0, 1.0, 5.0)

ERROR_LENGTH = 1000


def init_app(app: Quart, settings: Settings, *, composers: Composers) -> None:
    """Deliver mail while the application serves.

    Args:
        app: the application.
        settings: say how mail leaves.
        composers: for each kind of mail, what finds out what it says.
    """
    delivery = Delivery(
        app,
        app.extensions["database"],
        choose(settings),
        composers,
        origin=settings.origin or "",
        sender=settings.mail_from,
        draining=app.extensions["draining"],
    )
    app.extensions["mail"] = delivery

    # Unlike an `after_serving` function this ends before the database is closed, whatever the
    # order in which they are registered.
    @app.while_serving
    async def deliver() -> AsyncGenerator[None, None]:
        running = asyncio.create_task(delivery.run())
        yield
        delivery.stop()
        await running

    if isinstance(delivery.transport, Console) and delivery.transport.directory is not None:
        # Imported here: the accounts, which its pages know, import this module for their mails.
        from app.mail.development import blueprint

        app.register_blueprint(blueprint)


def current() -> "Delivery":
    """Return the current application's delivery of mail."""
    delivery: Delivery = current_app.extensions["mail"]
    return delivery


def external_url(endpoint: str, **values: Any) -> str:
    """Return the public address of a page, for a link in a mail.

    Never of the host that a request names: whoever asks for a mail could choose where its link
    leads.

    Raises:
        Failed: nobody has told the public origin.
    """
    delivery = current()
    path = current_app.url_map.bind("").build(endpoint, values)
    return delivery.known_origin() + path


class Claim(NamedTuple):
    """A mail that is this process's to send, until the lease ends."""

    id: int
    kind: str
    data: dict[str, Any]
    attempts: int
    """How often it was claimed, this time included."""
    created_at: datetime


class Delivery:
    """One process's share in delivering the outbox.

    Attributes:
        transport: how mail leaves.
        composers: what finds out what a mail says, by its kind.
        origin: scheme and host of the site; empty if nobody has told it.
        sender: the address that mail comes from; by default noreply@ the host.
    """

    def __init__(
        self,
        app: Quart,
        database: Database,
        transport: Transport,
        composers: Composers,
        *,
        origin: str,
        sender: str,
        draining: asyncio.Event,
    ) -> None:
        self.app = app
        self.database = database
        self.transport = transport
        self.composers = composers
        self.origin = origin
        self.sender = sender
        self._draining = draining
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._sending: set[asyncio.Task[None]] = set()
        self._stopping = False

    def wake(self) -> None:
        """Look into the outbox now: something was posted."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no more mail."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until stopped, or until the process is told to stop."""
        self._stopping = False
        watch = asyncio.create_task(self._draining.wait())
        watch.add_done_callback(lambda _: self._wake.set())
        while not self._is_ending:
            # The first look comes later than the start: a process that starts has other things
            # to do, and the release may have to migrate first.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL)
            self._wake.clear()
            try:
                await self._begin_due()
            except Unavailable:
                pass  # the gate has said so; what waits here waits well
            except Exception:
                log.exception("mail could not be looked for")
        watch.cancel()
        if self._sending:
            _, late = await asyncio.wait(self._sending, timeout=FINISH)
            for task in late:
                log.warning("mail interrupted", mail=task.get_name())
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def deliver_due(self) -> int:
        """Try everything that is due now, once, and return how many that were.

        Raises:
            Unavailable: the database is away, or not migrated yet.
        """
        count = 0
        while begun := await self._begin_due():
            await asyncio.gather(*begun)
            count += len(begun)
        return count

    def known_origin(self) -> str:
        """Return the public origin.

        Raises:
            Failed: nobody has told it.
        """
        if not self.origin:
            raise Failed(
                "The site's address is not known: set PUBLIC_ORIGIN, or give the application"
                " a route.",
                "no origin",
            )
        return self.origin

    @property
    def _is_ending(self) -> bool:
        return self._stopping or self._draining.is_set()

    async def _begin_due(self) -> list[asyncio.Task[None]]:
        """Claim what is due, and begin to send it, as far as there is room; wait for no room."""
        begun: list[asyncio.Task[None]] = []
        while not (self._is_ending or self._slots.locked()):
            await self._slots.acquire()  # there is one: this does not wait
            try:
                claim = await self._claim()
            except BaseException:
                self._slots.release()
                raise
            if claim is None:
                self._slots.release()
                break
            task = asyncio.create_task(self._deliver(claim), name=str(claim.id))
            self._sending.add(task)
            task.add_done_callback(self._ended)
            begun.append(task)
        return begun

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if self._slots.locked():
            self._wake.set()  # for want of room something that is due may have been left
        self._slots.release()

    async def _claim(self) -> Claim | None:
        """Take the mail that has been due for longest; nobody else gets it while the lease lasts.

        Should this process be killed, it is due again then. Until then it has not failed: somebody
        who asks for another attempt would have it sent twice.
        """
        longest_due = (
            select(Mail.id)
            .where(Mail.due_at <= func.now())
            .order_by(Mail.due_at, Mail.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        claim = (
            update(Mail)
            .where(Mail.id == longest_due)
            .values(
                attempts=Mail.attempts + 1,
                due_at=func.now() + timedelta(seconds=LEASE),
                error=None,
            )
            .returning(Mail.id, Mail.kind, Mail.data, Mail.attempts, Mail.created_at)
            .execution_options(synchronize_session=False)
        )
        async with self.database.write() as session:
            row = (await session.execute(claim)).one_or_none()
        return Claim(*row) if row is not None else None

    async def _deliver(self, claim: Claim) -> None:
        """Try to send one mail, and write down what became of it."""
        try:
            await self._settle(claim, await self._attempt(claim))
        except Unavailable:
            # It is due again after the lease. If it was sent, it is sent twice: better than never.
            log.warning("mail not settled", id=claim.id, kind=claim.kind)
        except Exception:
            log.exception("mail not settled", id=claim.id, kind=claim.kind)

    async def _attempt(self, claim: Claim) -> dict[str, Any] | None:
        """Return what to change in its row; None if it needs the row no more."""
        try:
            if claim.attempts > ATTEMPTS:
                raise Refused("The process ended during each of the attempts.", "interrupted")
            message = await self._message(claim)
            if message is None:
                log.info("mail not needed any more", id=claim.id, kind=claim.kind)
                return None
            if await self.transport.send(Outgoing(claim.id, claim.kind, message)):
                log.info("mail sent", id=claim.id, kind=claim.kind, attempt=claim.attempts)
                return None
            return {"due_at": None, "error": None, "message": message.as_string()}
        except Exception as error:
            return self._failed(claim, error)

    async def _message(self, claim: Claim) -> EmailMessage | None:
        """Put together what the mail says now; None if there is nothing to say any more."""
        origin = self.known_origin()
        composer = self.composers.get(claim.kind)
        if composer is None:
            raise Failed(f"This release knows no mail of the kind {claim.kind!r}.", "unknown kind")
        async with self.app.app_context():
            async with self.database.read() as session:
                letter = await composer(session, claim.data)
            if letter is None:
                return None
            return await rendering.render(
                self.app,
                letter,
                origin=origin,
                sender=self.sender,
                identity=f"{claim.id} {claim.created_at}",
            )

    def _failed(self, claim: Claim, error: Exception) -> dict[str, Any]:
        """Say that an attempt failed, and return what to change in the mail's row."""
        known = isinstance(error, Failed)
        about: dict[str, Any] = {
            "id": claim.id,
            "kind": claim.kind,
            "attempt": claim.attempts,
            # Not the words: a server's answer repeats addresses, an exception what it was about.
            "reason": error.code if isinstance(error, Failed) else type(error).__name__,
        }
        if not known and (frames := traceback.extract_tb(error.__traceback__)):
            about["where"] = f"{frames[-1].filename}:{frames[-1].lineno}"
        words = str(error) if known else f"{type(error).__name__}: {error}"
        # A server may answer in any encoding; PostgreSQL takes UTF-8, and no NUL.
        words = words.replace("\0", "").encode("utf-8", "replace").decode()
        change: dict[str, Any] = {"error": words[:ERROR_LENGTH], "due_at": None}
        if isinstance(error, Refused) or claim.attempts >= ATTEMPTS:
            log.error("mail given up", **about)
        else:
            wait = BACK_OFF[claim.attempts - 1]
            change["due_at"] = func.now() + timedelta(seconds=wait)
            log.warning("mail failed", **about, next_attempt=f"in {wait} s")
        return change

    async def _settle(self, claim: Claim, change: dict[str, Any] | None) -> None:
        """Write down what became of a mail, unless somebody else has claimed it since."""
        mine = (Mail.id == claim.id, Mail.attempts == claim.attempts)
        for pause in SETTLE_PAUSES:
            await asyncio.sleep(pause)
            try:
                async with self.database.write() as session:
                    if change is None:
                        await session.execute(delete(Mail).where(Mail.id == claim.id))
                    else:
                        await session.execute(update(Mail).where(*mine).values(change))
                return
            except Unavailable as error:
                last = error
        raise last
