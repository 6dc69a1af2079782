"""The switches as one process knows them."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from werkzeug.exceptions import ServiceUnavailable

from quart_upsun.current import current_toolkit
from quart_upsun.logging import get_logger

log = get_logger(__name__)

MAINTENANCE, READ_ONLY = "maintenance", "read-only"
TITLES = {MAINTENANCE: "Maintenance", READ_ONLY: "Read-only mode"}

# A process that has just started does not know the switches yet. Requests wait at most this long
# for them, so that an outage of the database does not delay pages that need none.
FIRST_READ_SECONDS = 1.0
MIN_RETRY_AFTER_SECONDS = 60  # also when the expected end has passed


@dataclass(frozen=True)
class Switch:
    """A switch that is on."""

    name: str
    """`MAINTENANCE` or `READ_ONLY`."""
    message: str
    """The sentence for visitors."""
    retry_after_seconds: int
    """From `since` to the expected end."""
    since: datetime

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def retry_after(self) -> int:
        """The seconds from now to the expected end, for the header `Retry-After`."""
        passed = (datetime.now(UTC) - self.since).total_seconds()
        return max(MIN_RETRY_AFTER_SECONDS, math.ceil(self.retry_after_seconds - passed))


class SwitchedOffError(ServiceUnavailable):
    """A switch refuses the request: 503 with its message and `Retry-After`."""

    def __init__(self, switch: Switch) -> None:
        super().__init__(switch.message, retry_after=switch.retry_after)
        self.title = switch.title


async def nobody() -> bool:
    """Exempt no request from maintenance."""
    return False


class Switches:
    """The switches that are on, as this process knows them.

    While the database is away, the last known state holds.

    Attributes:
        active: the switches that are on, by name.
        is_exempt: whether maintenance lets the current request pass. An application sets it, to let
            its administrators in.
    """

    def __init__(self) -> None:
        self.active: Mapping[str, Switch] = {}
        self.is_exempt: Callable[[], Awaitable[bool]] = nobody
        self._maintenance_began: Callable[[], None] = lambda: None
        self._known = asyncio.Event()
        self._known.set()
        self._deadline = 0.0

    @property
    def is_known(self) -> bool:
        """Whether the table was read, or the first attempt failed."""
        return self._known.is_set()

    @property
    def pauses_jobs(self) -> bool:
        """Whether no job may be started. Jobs write, if only to the queue."""
        return bool(self.active)

    def expect(self, maintenance_began: Callable[[], None]) -> None:
        """Let requests wait for the first state.

        Args:
            maintenance_began: called each time that maintenance is switched on.
        """
        self._maintenance_began = maintenance_began
        self._known.clear()
        self._deadline = asyncio.get_running_loop().time() + FIRST_READ_SECONDS

    async def wait(self) -> None:
        """Wait until the state is known, or the time for it is up."""
        if self.is_known:
            return
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._known.wait()
        except TimeoutError:
            self._known.set()

    def give_up(self) -> None:
        """Keep the last known state, because the table cannot be read now."""
        self._known.set()

    def update(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over the rows of the table. Unknown switches, of a newer release, are ignored."""
        before, self.active = (
            self.active,
            {row["name"]: Switch(**row) for row in rows if row["name"] in TITLES},
        )
        self._known.set()
        for name in TITLES:
            if (name in before) != (name in self.active):
                log.warning(
                    "switch changed", switch=name, state="on" if name in self.active else "off"
                )
        if MAINTENANCE in self.active and MAINTENANCE not in before:
            self._maintenance_began()


def current_switches() -> list[Switch]:
    """Return the switches that are on, for banners and the operations page."""
    active = current_toolkit().switches.active
    return [active[name] for name in TITLES if name in active]
