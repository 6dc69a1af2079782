"""The background job that renders a mail and passes it to a transport.

`outbox.send_later` enqueues it. Delivery is at least once: if the process dies after the mail
server has accepted a mail and before that is recorded, the mail is sent again, with the same
Message-ID.
"""

from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from quart import Quart, current_app
from sqlalchemy import insert

from quart_upsun.current import current_toolkit
from quart_upsun.database import DatabaseUnavailableError
from quart_upsun.jobs.queue import JobContext, JobError, Task
from quart_upsun.logging import get_logger
from quart_upsun.mail import development, rendering
from quart_upsun.mail.letters import Composer
from quart_upsun.mail.models import Mail
from quart_upsun.mail.transports import (
    SEND_TIMEOUT_SECONDS,
    ConsoleTransport,
    OutgoingMail,
    Transport,
    choose_transport,
)
from quart_upsun.settings import Settings
from quart_upsun.spans import client_span

log = get_logger(__name__)

MAX_CONNECTIONS = 8  # mail servers limit the number of connections


def init_app(app: Quart, settings: Settings) -> "Delivery":
    """Set up the delivery of mail; on a laptop, register pages that show it."""
    delivery = Delivery(
        transport=choose_transport(settings),
        composers={},
        origin=settings.origin or "",
        sender=settings.mail_from,
    )
    if (
        isinstance(delivery.transport, ConsoleTransport)
        and delivery.transport.directory is not None
    ):
        app.register_blueprint(development.blueprint)
    return delivery


def external_url(endpoint: str, **values: Any) -> str:
    """Return the external URL of an endpoint, for a link in a mail.

    It uses the public origin and not the Host header of a request, with which a client could choose
    where the link leads.

    Raises:
        JobError: the public origin is unknown.
    """
    path = current_app.url_map.bind("").build(endpoint, values)
    return current_toolkit().mail.known_origin() + path


@dataclass
class Delivery:
    """The application's way to send mail."""

    transport: Transport
    composers: dict[str, Composer]
    """The composers by kind of mail."""
    origin: str
    """The public origin of the site; empty if unknown."""
    sender: str
    """The From header; by default noreply@ the host."""

    def known_origin(self) -> str:
        """Return the public origin.

        Raises:
            JobError: it is unknown.
        """
        if not self.origin:
            raise JobError(
                "The public origin is unknown. Set PUBLIC_ORIGIN, or add a route to the"
                " application.",
                "no origin",
            )
        return self.origin

    async def message(self, running: JobContext) -> EmailMessage | None:
        """Render the mail; return None if it is no longer needed."""
        origin, kind = self.known_origin(), running.data["kind"]
        composer = self.composers.get(kind)
        if composer is None:  # a newer release may have it
            raise JobError(f"No composer for mail of kind {kind!r}.", "unknown kind")
        async with running.database.read(exact=True) as session:
            letter = await composer(session, running.data["data"])
        if letter is None:
            return None
        return await rendering.render(
            current_app,
            letter,
            origin=origin,
            sender=self.sender,
            identity=running.data["identity"],
        )


async def send_mail(running: JobContext) -> None:
    """Send a mail, or keep it if this environment sends none."""
    delivery = current_toolkit().mail
    about = {"job_id": running.id, "kind": running.data["kind"]}
    message = await delivery.message(running)
    if message is None:
        log.info("mail skipped", **about)
        return
    with client_span("send mail", {"quart_upsun.mail.kind": about["kind"]}):
        is_sent = await delivery.transport.send(OutgoingMail(running.id, about["kind"], message))
    if is_sent:
        log.info("mail sent", **about, attempt=running.attempt)
        try:
            async with running.complete():
                pass  # at once: if the process were killed before, the mail would be sent again
        except DatabaseUnavailableError:
            log.warning("mail sent but not recorded", **about)
            # A failure would send the mail again. The queue records the success once the database
            # is available.
    else:
        async with running.complete() as session:
            kept = {"kind": about["kind"], "message": message.as_string()}
            await session.execute(insert(Mail).values(kept))


SEND_MAIL = Task(
    "mail",
    send_mail,
    timeout=SEND_TIMEOUT_SECONDS + 30,
    priority=10,  # a user is waiting for it
    max_concurrent=MAX_CONNECTIONS,
    logged_fields=("kind",),
)
