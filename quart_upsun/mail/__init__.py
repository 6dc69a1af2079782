"""Mail, sent by a background job.

A feature registers a `Composer` for each kind of mail, and `send_later` enqueues a mail. When the
mail is sent, the composer returns a `Letter`, which names a template in `templates/mail/`.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.mail.delivery import Delivery, external_url
    from quart_upsun.mail.letters import Composer, Composers, Letter
    from quart_upsun.mail.outbox import send_later
    from quart_upsun.mail.rendering import MailTemplateError

__all__ = [
    "Composer",
    "Composers",
    "Delivery",
    "Letter",
    "MailTemplateError",
    "external_url",
    "send_later",
]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("letters", "delivery", "outbox", "rendering"))
