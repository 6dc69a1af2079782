"""The application's own tests pass behind PgBouncer in transaction mode."""

import os
import subprocess
import sys

import pytest

from app.settings import ROOT

# A part of them; `pytest tests/features --pooler` runs all.
FILES = ("test_account.py", "test_proofs.py", "test_recovery.py", "test_sessions.py")


@pytest.mark.requires("pgbouncer")
def test_feature_tests_pass_through_a_pooler() -> None:
    files = [f"tests/features/{name}" for name in FILES]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--pooler", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout
