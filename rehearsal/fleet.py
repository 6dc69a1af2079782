"""The instances of a running release, which the router sends requests to at random.

As on the platform, each instance runs the web commands, and hooks and crons run once, here in the
first instance. Workers are containers of their own, whose number `upsun resources:set` sets
separately, so they are started once, too.
"""

import asyncio
from collections.abc import Sequence

from rehearsal.configuration import Application
from rehearsal.image import Image
from rehearsal.instance import ExitStatus, Instance


class Fleet:
    """The instances of a running release; at least one."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = list(instances)

    @property
    def first(self) -> Instance:
        """Return the instance in which hooks and crons run, and that has the workers."""
        return self.instances[0]

    @property
    def others(self) -> list[Instance]:
        return self.instances[1:]

    @property
    def image(self) -> Image:
        return self.first.image

    @property
    def application(self) -> Application:
        return self.first.application

    @property
    def is_serving(self) -> bool:
        """Return whether the first instance has accepted a connection."""
        return self.first.is_serving

    @property
    def entrances(self) -> list[int]:
        """Return the ports that the router sends requests to: those of the instances that serve.

        If none does, requests get the response of the containers' web servers.
        """
        serving = [each.entrance for each in self.instances if each.is_serving]
        return serving or [each.entrance for each in self.instances]

    async def start(self) -> None:
        """Start all instances at the same time.

        Raises:
            RuntimeError, ValueError: see `Instance.start`.
        """
        ends = await asyncio.gather(
            *(each.start(with_workers=each is self.first) for each in self.instances),
            return_exceptions=True,
        )
        for end in ends:
            if end is not None:
                raise end

    async def stop(self) -> list[ExitStatus]:
        """Stop all instances at the same time; return how each one ended."""
        return await asyncio.gather(*(each.stop() for each in self.instances))
