"""What the process is: the attributes of all that it sends."""

import os
import socket

from quart_upsun.settings import Settings


def process_attributes(settings: Settings) -> dict[str, str]:
    """Return the resource attributes of this process, by the names of OpenTelemetry.

    https://opentelemetry.io/docs/specs/semconv/resource/
    """
    platform = settings.platform
    found = {
        "service.name": platform.application if platform else settings.name,
        # Two processes of an instance have different metrics.
        "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
        "deployment.environment.name": platform.type if platform else "local",
    }
    if platform is not None:
        found["upsun.environment"] = platform.name
        if platform.release:
            found["service.version"] = platform.release
    return found
