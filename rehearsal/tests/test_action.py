"""The GitHub action: its shell steps, run as GitHub runs them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rehearsal.tests.sample import CONFIG, commit, sample

PACKAGE = Path(__file__).resolve().parents[1]
ACTION: dict[str, Any] = yaml.safe_load((PACKAGE / "action.yml").read_text())
# https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory with `upsun-rehearse`, in place of the step that installs it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "upsun-rehearse"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={PACKAGE.parent} exec {sys.executable} -m rehearsal "$@"\n'
    )
    program.chmod(0o755)
    return directory


def run_action(checkout: Path, programs: Path, **inputs: str) -> tuple[int, str]:
    """Run the last step with some inputs; return its exit code and its output."""
    values = {name: described["default"] for name, described in ACTION["inputs"].items()} | inputs
    step = ACTION["runs"]["steps"][-1]
    variables = {}
    for name, text in step["env"].items():
        for key, value in values.items():
            text = text.replace(f"${{{{ inputs.{key} }}}}", value)
        variables[name] = text
    result = subprocess.run(
        [*SHELL, step["run"]],
        cwd=checkout,
        env={
            **os.environ,
            **variables,
            "GITHUB_ACTIONS": "true",
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


def test_every_input_is_used() -> None:
    text = (PACKAGE / "action.yml").read_text()
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in text


def test_validate_annotates_the_line(tmp_path: Path, programs: Path) -> None:
    repository = tmp_path / "repository"
    sample(repository)
    assert run_action(repository, programs)[0] == 0
    commit(repository, {".upsun/config.yaml": CONFIG.replace("python:", "pyton:")})
    code, output = run_action(tmp_path, programs, directory="repository", arguments="--strict")
    assert code == 1
    assert "::error file=repository/.upsun/config.yaml,line=3" in output


@pytest.mark.requires("bwrap", "nginx", "dash")
def test_rehearse_fails_the_step_like_the_deploy(tmp_path: Path, programs: Path) -> None:
    repository = tmp_path / "repository"
    sample(repository)
    code, output = run_action(repository, programs, command="rehearse", arguments="--json HEAD")
    assert code == 0, output
    assert '"verdict": "succeeds"' in output
    commit(repository, {".upsun/config.yaml": CONFIG.replace("mkdir built\n", "false\n")})
    code, output = run_action(repository, programs, command="rehearse")
    assert code == 1, output
    assert "The deploy would fail." in output
