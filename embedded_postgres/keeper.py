"""The process that runs an embedded PostgreSQL server while other processes use it.

server.py starts it and documents the files in the directory. It has its own session, so that Ctrl-C
in a terminal does not stop the database before the application has shut down. If a process that
uses the server is killed, its lock is released, and this process stops the server.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which

RETRY_SECONDS = 5
START_SECONDS = 60  # includes crash recovery
STOP_SECONDS = 10
POLL_SECONDS = 1
NOBODY = 65534

Server = subprocess.Popen[bytes]


class PostgresError(Exception):
    """The embedded PostgreSQL cannot be used; the message is one sentence."""


def lock(path: Path, kind: int) -> int:
    """Lock `path` until the returned descriptor is closed.

    The kernel releases the lock when the process ends, even if it is killed.

    Raises:
        BlockingIOError: `kind` has LOCK_NB, and another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock on `path` during a block."""
    descriptor = lock(path, kind)
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return whether any process holds a lock on `path`."""
    try:
        with locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True


def as_server_user() -> Sequence[str]:
    """Return the prefix for PostgreSQL's commands, which refuse to run as root.

    As root they run as `nobody`, with the capability to read files in a home directory that other
    users cannot enter, so that no permissions have to be changed. The security bit makes access(2)
    respect that capability.
    """
    if os.geteuid() != 0:
        return ()
    setpriv = which("setpriv")
    if setpriv is None:
        raise PostgresError(
            "To run as root, the embedded PostgreSQL requires setpriv. Install the package"
            " util-linux."
        )
    return (
        setpriv,
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--securebits=+no_setuid_fixup",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--",
    )


def end_leftover(data: Path) -> None:
    """Stop the server of a keeper that was killed, or remove its stale postmaster.pid.

    In a container the process id in a stale file may soon belong to another process, and
    PostgreSQL would refuse to start.
    """
    import psutil  # rarely needed and slow to import

    file = data / "postmaster.pid"
    if not file.exists():
        return
    try:
        process = psutil.Process(int(file.read_text().split()[0]))
        ours = process.name() == "postgres" and Path(process.cwd()).samefile(data)
        if ours:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)
    except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, IndexError, ValueError):
        pass
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
    file.unlink(missing_ok=True)


def free_port(preferred: int) -> int:
    """Return a free TCP port; the preferred one if possible, so that saved connections work."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise PostgresError("No TCP port is free for the embedded PostgreSQL.")


def start(directory: Path, port: int, command: Sequence[str]) -> tuple[Server, int]:
    """Start the server and wait until it accepts connections; return it and its port.

    Retry a failed start for a while: the backends of a killed server need a moment to exit, and
    another process may have taken the port.
    """
    data, log = directory / "data", directory / "log"
    begun = time.monotonic()
    while time.monotonic() < begun + RETRY_SECONDS:
        end_leftover(data)
        port = free_port(port)
        with log.open("ab") as output:
            server = subprocess.Popen(
                [*as_server_user(), *command, "-D", str(data), "-c", f"port={port}"],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            while server.poll() is None and time.monotonic() < begun + START_SECONDS:
                if is_ready(data, server.pid):
                    return server, port
                time.sleep(0.01)
        except SystemExit:
            stop(server)
            raise
        stop(server)
        time.sleep(0.2)
    raise PostgresError(f"The embedded PostgreSQL failed to start. See {log}.")


def is_ready(data: Path, pid: int) -> bool:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) == 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def stop(server: Server) -> None:
    """Stop the server: fast shutdown, then immediate shutdown, then SIGKILL."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is None:
            server.send_signal(number)
        try:
            server.wait(STOP_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue


def keep(directory: Path, command: Sequence[str]) -> None:
    """Start the server, print its port, and stop it when no process uses it any more."""
    keeper = directory / "keeper"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    descriptor = lock(keeper, fcntl.LOCK_EX)  # held until this process ends
    previous = keeper.read_text().split()
    server, port = start(directory, int(previous[1]) if len(previous) == 2 else 0, command)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {port}".encode(), 0)
        print(port, flush=True)
        detach_output()
        while server.poll() is None:
            stop_if_unused(directory, server)
            try:
                server.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop(server)


def stop_if_unused(directory: Path, server: Server) -> None:
    """Stop the server if no process uses it, unless a process is joining or leaving right now."""
    try:
        with locked(directory / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            if not is_locked(directory / "holders"):
                stop(server)
    except BlockingIOError:
        return


def detach_output() -> None:
    """Close the pipes to the process that started this one and waits for their end."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, sys.stdout.fileno())
    os.dup2(null, sys.stderr.fileno())
    os.close(null)


if __name__ == "__main__":
    # Fork, so that this process outlives the one that started it.
    if os.fork() == 0:
        os.setsid()
        try:
            keep(Path(sys.argv[1]), sys.argv[2:])
        except PostgresError as error:
            sys.exit(str(error))
