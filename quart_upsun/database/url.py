"""Parse DATABASE_URL and check the parameters of the PostgreSQL URI.

Providers hand out URIs with libpq's parameters. asyncpg and SQLAlchemy each know only some of them,
and fail at the first connection with the others. So all are checked when the settings are read.
https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import re
import ssl
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

SCHEMES = {"postgresql", "postgres", "pgsql", "postgresql+asyncpg"}
MISSING = "missing"  # not a parameter of libpq
EXPECTED_FORM = "is malformed. Use postgresql://user:password@host:port/database"

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
VERIFYING_SSL_MODES = ("verify-ca", "verify-full")
SSL_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
SSL_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
SYSTEM = "system"  # sslrootcert=system: the certificate authorities that the system trusts
SESSION_ATTRIBUTES = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
MAX_CONNECT_TIMEOUT_SECONDS = 3600

# Parameters whose listed values are asyncpg's behavior anyway.
DEFAULT_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("utf8", "utf-8", "unicode"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
SERVER_SETTINGS = ("application_name", "options")
SUPPORTED = {
    *("host", "port", "user", "password", "dbname", "passfile"),
    *("connect_timeout", "target_session_attrs"),
    *("sslmode", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version"),
    *SSL_FILES,
    *SERVER_SETTINGS,
    *DEFAULT_PARAMETERS,
}
POOLER_HINT = "Remove it: a connection pooler is detected"
HINTS = {
    "prepared_statement_cache_size": POOLER_HINT,
    "prepared_statement_name_func": POOLER_HINT,
    "statement_cache_size": POOLER_HINT,
    "pgbouncer": POOLER_HINT,
    "channel_binding": "To authenticate the server, use sslmode=verify-full&sslrootcert=system",
    "sslpassword": "Use a key file without a passphrase",
    "service": "Add the parameters of the service to the URL",
    "schema": "Use options=-csearch_path%3D…",
}


def parse_database_url(value: Any) -> URL:
    """Parse a PostgreSQL URI in any common form.

    `URL` has no attributes for several hosts or a Unix socket directory. These are in its query, as
    comma-separated `host` and `port`.

    Args:
        value: the URI, or a URL that this function returned before.

    Returns:
        a URL for SQLAlchemy's asyncpg dialect with checked libpq parameters. Connect with
        `quart_upsun.database.connect()`; SQLAlchemy itself does not support the parameters.

    Raises:
        ValueError: the URI is malformed or has an unsupported parameter. The message continues a
            sentence that starts with the name of the variable. It contains no secrets.
    """
    url = value if isinstance(value, URL) else _parse(str(value).strip())
    if url.drivername not in SCHEMES:
        raise ValueError(f"must start with postgresql://, got {url.drivername}://")
    query = {name: _single_value(name, each) for name, each in url.query.items()}
    if "ssl" in query:  # the name in SQLAlchemy and JDBC
        _reject_duplicate("sslmode", query.get("sslmode"))
        mode = query.pop("ssl")
        query["sslmode"] = "require" if mode.lower() == "true" else mode
    url = url.set(drivername="postgresql+asyncpg", query=query)
    url = _move_to_attributes(url)
    if not url.database:
        raise ValueError("has no database name. Add it after the host: postgresql://host/database")
    _check(url.query)
    connect_arguments(url)  # raises now if a certificate is unusable
    return url


def missing_url(message: str) -> URL:
    """Return a URL that stands for a missing DATABASE_URL; connecting exits with the message.

    Commands that need no database work with it.
    """
    return URL.create("postgresql+asyncpg", query={MISSING: message})


def require_url(url: URL) -> None:
    """Check that DATABASE_URL is set.

    Raises:
        SystemExit: the URL is from `missing_url()`.
    """
    if message := url.query.get(MISSING):
        raise SystemExit(str(message))


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return the arguments of `asyncpg.connect()` for a URL.

    Args:
        url: a URL from `parse_database_url()`.

    Returns:
        keyword arguments. `timeout` (seconds) is included only if the URL has `connect_timeout`,
        and `server_settings` has only the settings in the URL.

    Raises:
        ValueError: a certificate or key is unusable.
    """
    query = {name: str(each) for name, each in url.query.items()}
    arguments: dict[str, Any] = {
        "user": url.username,
        "password": url.password,
        "database": url.database,
        "host": url.host,
        "port": url.port,
        "ssl": _ssl_argument(query),
        "server_settings": {name: query[name] for name in SERVER_SETTINGS if name in query},
    }
    if "host" in query:
        arguments["host"] = query["host"].split(",")
        if "port" in query:
            arguments["port"] = [int(port) for port in query["port"].split(",")]
    if "connect_timeout" in query:
        arguments["timeout"] = float(query["connect_timeout"])
    if "sslnegotiation" in query:
        arguments["direct_tls"] = query["sslnegotiation"] == "direct"
    for name in ("passfile", "target_session_attrs"):
        if name in query:
            arguments[name] = query[name]
    return arguments


def host_and_port(url: URL) -> str:
    """Return the hosts and ports of a URL for display."""
    hosts = str(url.query.get("host") or url.host or "localhost").split(",")
    ports = str(url.query.get("port") or url.port or 5432).split(",")
    return ", ".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))


def _parse(text: str) -> URL:
    if any(ord(character) < 32 or character == "\x7f" for character in unquote(text)):
        raise ValueError("contains a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8") from None
    # Finds the host in the same way as SQLAlchemy.
    match = re.fullmatch(r"(\w[\w+]*://(?:[^:/]*(?::[^@]*)?@)?)([^/?]*)(.*)", text)
    if match is None:
        raise ValueError(EXPECTED_FORM)
    before, host, after = match.groups()
    _, _, query = after.partition("?")
    try:
        parameters = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ValueError("has a parameter without a value") from None
    for name, value in parameters:
        if not value:
            raise ValueError(f"has the {_parameter_name(name)} without a value")
    has_several_hosts = "," in host
    try:
        url = make_url(before + after if has_several_hosts else text)
    except (ArgumentError, ValueError):
        raise ValueError(EXPECTED_FORM) from None
    if has_several_hosts:
        _reject_duplicate("host", url.query.get("host"))
        return url.update_query_dict({"host": host})
    return url.set(host=unquote(url.host)) if url.host else url


def _single_value(name: str, value: str | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    if name not in {"host", "port"}:
        raise ValueError(f"has the {_parameter_name(name)} more than once")
    return ",".join(value)


def _parameter_name(name: str) -> str:
    """Return a parameter's name for a message.

    Anything that does not look like a name is left out: it may be a part of a password.
    """
    return f"parameter {name}" if re.fullmatch(r"[A-Za-z_]{1,40}", name) else "parameter (hidden)"


def _reject_duplicate(name: str, before: object) -> None:
    if before is not None:
        raise ValueError(f"has the parameter {name} more than once")


def _move_to_attributes(url: URL) -> URL:
    """Move parameters to the attributes of `URL`, which hides a password when it is printed."""
    query = {name: str(each) for name, each in url.query.items()}
    for name, attribute in (
        ("user", "username"),
        ("password", "password"),
        ("dbname", "database"),
    ):
        if name in query:
            _reject_duplicate(name, getattr(url, attribute) or None)
            changed: dict[str, Any] = {attribute: query.pop(name)}
            url = url._replace(**changed)
    if "host" in query:
        _reject_duplicate("host", url.host)
    port = "" if url.port is None else str(url.port)
    found = _parse_hosts(query.pop("host", url.host or ""), query.pop("port", port))
    names, numbers = [host for host, _ in found], [port for _, port in found]
    if len(found) == 1 and not names[0].startswith("/"):
        return url._replace(host=names[0] or None, port=numbers[0]).set(query=query)
    query["host"] = ",".join(names)
    if len(found) > 1 or numbers[0] is not None:
        query["port"] = ",".join(str(port or 5432) for port in numbers)
    return url._replace(host=None, port=None).set(query=query)


def _parse_hosts(hosts: str, ports: str) -> list[tuple[str, int | None]]:
    """Split a list of hosts, with a port in each host or in a second list."""
    names, given = hosts.split(","), ports.split(",")
    if len(given) not in {1, len(names)}:
        raise ValueError(
            "has a different number of hosts and ports. Give one port, or one for each host"
        )
    if len(names) == 1:
        given = [ports]
    found = []
    for position, name in enumerate(map(unquote, names)):
        # An IPv6 address, in brackets if a port follows; a directory; or a host name.
        match = re.fullmatch(r"\[(.+)\](?::(.*))?|(/.*|[^:]*)(?::([^:]*))?", name)
        own = match and (match[2] or match[4])
        host = (match[1] or match[3]) if match else name
        port = own or given[position if len(given) > 1 else 0]
        _check_host(host, is_one_of_several=len(names) > 1)
        found.append((host, _parse_port(port) if port else None))
    return found


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("has an invalid port. Use a number from 1 to 65535")
    return int(text)


def _check_host(host: str, *, is_one_of_several: bool) -> None:
    if host.startswith("/") or (not host and not is_one_of_several):  # a Unix socket
        return
    try:
        ip_address(host)
    except ValueError:
        try:
            host.encode("idna")
            is_name = re.search(r"[\s\"'\\<>\[\]@:%]", host) is None and bool(host)
        except UnicodeError:
            is_name = False
        if not is_name:
            raise ValueError("has an invalid host name") from None


def _check(query: Mapping[str, Any]) -> None:
    for name, value in query.items():
        if name not in SUPPORTED:
            hint = HINTS.get(name, "Remove it")
            raise ValueError(f"has the unsupported {_parameter_name(name)}. {hint}")
        accepted = DEFAULT_PARAMETERS.get(name)
        if accepted is not None and value.lower() not in accepted:
            hint = f". {HINTS[name]}" if name in HINTS else ""
            raise ValueError(
                f"has an unsupported value for {name}. Only {' or '.join(accepted)} is"
                f" supported{hint}"
            )
    for name, known in (
        ("sslmode", SSL_MODES),
        ("sslnegotiation", ("postgres", "direct")),
        ("ssl_min_protocol_version", tuple(SSL_VERSIONS)),
        ("ssl_max_protocol_version", tuple(SSL_VERSIONS)),
        ("target_session_attrs", SESSION_ATTRIBUTES),
    ):
        if name in query and query[name] not in known:
            raise ValueError(f"has an invalid {name}. Use one of {', '.join(known)}")
    seconds = str(query.get("connect_timeout", "1"))
    if (
        not re.fullmatch(r"[0-9]{1,4}", seconds)
        or not 0 < int(seconds) <= MAX_CONNECT_TIMEOUT_SECONDS
    ):
        raise ValueError(
            "has an invalid connect_timeout. Use a number of seconds from 1 to"
            f" {MAX_CONNECT_TIMEOUT_SECONDS}"
        )
    if "passfile" in query and not Path(query["passfile"]).is_file():
        raise ValueError("has a passfile that does not exist")


@lru_cache(maxsize=8)
def _ssl_context(
    mode: str,
    sslrootcert: str | None,
    sslcert: str | None,
    sslkey: str | None,
    sslcrl: str | None,
    oldest: str,
    newest: str,
) -> ssl.SSLContext:
    """Return the TLS context; cached, so that the certificates are read only once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.minimum_version, context.maximum_version = SSL_VERSIONS[oldest], SSL_VERSIONS[newest]
    context.set_alpn_protocols(["postgresql"])  # required by sslnegotiation=direct
    if sslrootcert is None:
        context.verify_mode = ssl.CERT_NONE
    elif sslrootcert == SYSTEM:
        context.load_default_certs()
    else:
        _load_file("sslrootcert", lambda: context.load_verify_locations(sslrootcert))
    if sslcrl is not None:
        _load_file("sslcrl", lambda: context.load_verify_locations(sslcrl))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if sslcert is not None:
        # Without a password, OpenSSL would prompt for one.
        name = "sslcert or sslkey" if sslkey else "sslcert"
        _load_file(name, lambda: context.load_cert_chain(sslcert, sslkey, password=""))
    return context


def _load_file(name: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError:
        raise ValueError(f"has an {name} that is not a valid PEM file") from None
    except OSError as error:
        raise ValueError(f"has an {name} that cannot be read: {error.strerror}") from None


def _ssl_argument(query: Mapping[str, str]) -> ssl.SSLContext | str | None:
    """Return asyncpg's `ssl` argument; None selects its default, `prefer`."""
    mode, root = query.get("sslmode"), query.get("sslrootcert")
    if root == SYSTEM:
        mode = mode or "verify-full"
        if mode != "verify-full":
            raise ValueError("has sslrootcert=system, which requires sslmode=verify-full")
    if mode in VERIFYING_SSL_MODES and root is None:
        root = _default_root_certificate()
        if root is None:
            raise ValueError(
                f"has sslmode={mode}, which requires sslrootcert. Set it to a file, or to `system`"
                " for the certificate authorities that the system trusts"
            )
    versions = ("ssl_min_protocol_version", "ssl_max_protocol_version")
    given = [name for name in (*SSL_FILES, *versions, "sslnegotiation") if name in query]
    if given and mode not in {"require", *VERIFYING_SSL_MODES}:
        raise ValueError(f"has {given[0]}, which requires sslmode=require or stricter")
    if "sslkey" in query and "sslcert" not in query:
        raise ValueError("has sslkey, which requires sslcert")
    if mode not in VERIFYING_SSL_MODES and not given:
        return mode
    return _ssl_context(
        str(mode),
        root,
        query.get("sslcert"),
        query.get("sslkey"),
        query.get("sslcrl"),
        query.get(versions[0], "TLSv1.2"),
        query.get(versions[1], "TLSv1.3"),
    )


def _default_root_certificate() -> str | None:
    """Return libpq's default file of certificate authorities, if it exists."""
    try:
        path = Path.home() / ".postgresql" / "root.crt"
    except RuntimeError:  # no home directory
        return None
    return str(path) if path.is_file() else None
