"""Security notices about the second factor."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.mail.delivery import external_url
from quart_upsun.mail.letters import Composer, Composers, Letter


def _composer(template: str) -> Composer:
    async def compose(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
        links = {
            "account": external_url("two_factor.show"),
            "forgot": external_url("recovery.forgot"),
        }
        return Letter(data["to"], template, {**data, **links})

    return compose


COMPOSERS: Composers = {
    name: _composer(name)
    for name in (
        "two-factor-enabled",
        "two-factor-disabled",
        "recovery-code-used",
        "recovery-codes-renewed",
    )
}
