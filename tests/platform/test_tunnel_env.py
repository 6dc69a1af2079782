"""`. bin/tunnel-env` on a developer's machine, with a fake `upsun` command."""

import shutil
from pathlib import Path

import pytest

from quart_upsun.testing.programs import require
from tests.platform.test_environment import (
    EVERYWHERE,
    PASSWORD,
    ROOT,
    TUNNEL,
    Run,
    difference,
    encode,
    endpoint,
    run,
    service_variables,
    tunnel_endpoint,
)

LIST = encode({"postgresql": [tunnel_endpoint()]})
OBJECT = encode({"postgresql": {"0": tunnel_endpoint()}})

# The shell, and the line before `. bin/tunnel-env`.
shells = pytest.mark.parametrize(
    ("shell", "options"),
    [("dash", ":"), ("dash", "set -eu"), ("bash", ":"), ("bash", "set -euo pipefail")],
    ids=["dash", "dash-eu", "bash", "bash-eu-pipefail"],
)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory for PATH with the programs that bin/tunnel-env requires, except `upsun`."""
    directory = tmp_path / "programs"
    directory.mkdir()
    (directory / "jq").symlink_to(require("jq"))
    (directory / "base64").symlink_to(shutil.which("base64") or "base64")
    return directory


def install_upsun(programs: Path, relationships: str) -> None:
    """Install a fake Upsun CLI with an open tunnel in `programs`.

    Without a tunnel, the real CLI prints an error and exits with 1. The fake one also fails if it
    can read from stdin, because the real one would wait for an answer to a hidden prompt.
    """
    upsun = programs / "upsun"
    upsun.write_text(
        "#!/bin/sh\n"
        "if read -r answer; then exit 3; fi\n"
        'if [ "$*" != "tunnel:info --encode" ]; then echo "unknown: $*" >&2; exit 2; fi\n'
        f"read -r tunnel <'{programs}/tunnel'\n"
        'if [ -z "$tunnel" ]; then echo "No tunnels found." >&2; exit 1; fi\n'
        'echo "Connected." >&2\n'
        'echo "$tunnel"\n'
    )
    upsun.chmod(0o755)
    (programs / "tunnel").write_text(relationships + "\n")


def source(
    shell: str,
    options: str,
    programs: Path,
    variables: dict[str, str] | None = None,
    cwd: Path = ROOT,
) -> Run:
    """Source bin/tunnel-env; stdout contains its exit status and the functions left defined."""
    script = f"""
        {options}
        status=0
        $MARK
        . '{ROOT}/bin/tunnel-env' || status=$?
        $MARK
        echo "$status"
        command -v _tunnel_env _upsun_percent_encode || :
        {"declare -F" if shell == "bash" else ":"}
    """
    given = {"PATH": str(programs)} | (variables or {})
    return run(shell, script, given, programs.parent, cwd=cwd, stdin=b"answer\n")


@shells
@pytest.mark.parametrize("tunnel", [LIST, OBJECT], ids=["list", "object"])
def test_points_the_shell_at_the_tunnel(
    tunnel: str, shell: str, options: str, programs: Path
) -> None:
    install_upsun(programs, tunnel)
    result = source(shell, options, programs, {"DATABASE_URL": "postgresql://localhost/mine"})

    assert (result.status, result.stdout) == (0, b"0\n")
    assert difference(*result.snapshots) == TUNNEL | EVERYWHERE
    message, warning = result.stderr.decode().splitlines()
    assert "127.0.0.1:30000, database main" in message
    assert "live database" in warning
    assert PASSWORD not in result.stderr.decode()


@shells
def test_tunnel_takes_precedence_over_variables_of_the_shell(
    shell: str, options: str, programs: Path
) -> None:
    install_upsun(programs, LIST)
    own = service_variables(HOST="elsewhere") | {
        "PLATFORM_RELATIONSHIPS": encode({"postgresql": [endpoint(host="elsewhere")]})
    }
    result = source(shell, options, programs, own)

    assert (result.status, result.stdout) == (0, b"0\n")
    assert difference(*result.snapshots) == TUNNEL | EVERYWHERE


def test_sourcing_again_uses_the_new_tunnel(programs: Path) -> None:
    install_upsun(programs, LIST)
    moved = encode({"postgresql": [tunnel_endpoint(port=30001)]})
    script = f"""
        . bin/tunnel-env
        echo '{moved}' >'{programs}/tunnel'
        . bin/tunnel-env
        $MARK
    """
    result = run("dash", script, {"PATH": str(programs)}, programs.parent)

    assert result.snapshots[0]["DB_PORT"] == "30001"
    assert ":30001/" in result.snapshots[0]["DATABASE_URL"]


@shells
@pytest.mark.parametrize(
    ("tunnel", "sentence"),
    [
        (None, "the upsun command is not on PATH"),
        ("", "no tunnel is open"),
        (encode({"cache": [tunnel_endpoint()]}), "no relationship named postgresql"),
        ("*** rubbish ***", "no relationship named postgresql"),
    ],
    ids=["no-upsun", "no-tunnel", "other-relationship", "rubbish"],
)
@pytest.mark.parametrize("own", [{}, {"DATABASE_URL": "postgresql://localhost/mine"}])
def test_reports_what_is_missing_and_changes_nothing(
    own: dict[str, str],
    tunnel: str | None,
    sentence: str,
    shell: str,
    options: str,
    programs: Path,
) -> None:
    if tunnel is not None:
        install_upsun(programs, tunnel)
    result = source(shell, options, programs, own)

    assert (result.status, result.stdout) == (0, b"1\n")
    assert difference(*result.snapshots) == {}
    [line] = result.stderr.decode().splitlines()
    assert line.startswith("tunnel-env: ")
    assert sentence in line


@shells
def test_reports_missing_jq(shell: str, options: str, programs: Path) -> None:
    install_upsun(programs, LIST)
    (programs / "jq").unlink()
    result = source(shell, options, programs)

    assert (result.status, result.stdout) == (0, b"1\n")
    assert difference(*result.snapshots) == {}
    [line] = result.stderr.decode().splitlines()
    assert "jq" in line


@shells
def test_requires_the_root_directory(
    shell: str, options: str, programs: Path, tmp_path: Path
) -> None:
    install_upsun(programs, LIST)
    result = source(shell, options, programs, cwd=tmp_path)

    assert (result.status, result.stdout) == (0, b"1\n")
    assert difference(*result.snapshots) == {}
    [line] = result.stderr.decode().splitlines()
    assert "root directory" in line


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_failure_does_not_end_the_shell(shell: str, programs: Path) -> None:
    result = run(shell, '. bin/tunnel-env\necho "$?"', {"PATH": str(programs)}, programs.parent)

    assert (result.status, result.stdout) == (0, b"1\n")
