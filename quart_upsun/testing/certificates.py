"""Self-signed TLS certificates for test servers."""

import asyncio
import ssl
import subprocess
from pathlib import Path

from quart_upsun.testing.programs import require


async def server_context(directory: Path, host: str) -> tuple[Path, ssl.SSLContext]:
    """Create a self-signed certificate for a host name, valid for two days.

    Returns:
        The path of the certificate, for the client, and the TLS context for the server.
    """
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = (
        f"{require('openssl')} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        f" -days 2 -subj /CN={host} -addext subjectAltName=DNS:{host} -keyout {key}"
        f" -out {certificate}"
    )
    await asyncio.to_thread(subprocess.run, command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
