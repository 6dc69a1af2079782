"""`AGENTS.md` is short and holds for every application, also one without the example."""

import re
import subprocess
import sys
from pathlib import Path

from app.settings import ROOT
from tests.documents.test_documents import exists, read
from tests.repository import tracked_files

DOCUMENT = "AGENTS.md"
# Every application keeps these features.
KEPT = {"app/public/", "app/user/"}


def test_paths_exist() -> None:
    files = set(tracked_files())
    paths = re.findall(r"`([\w.-]*(?:/[\w.-]*)+|[\w-]+\.md)`", read(DOCUMENT))
    assert len(paths) > 10
    for path in paths:
        assert exists(path, files), path


def test_names_no_feature_that_can_be_removed() -> None:
    named = set(re.findall(r"\bapp/\w+/", read(DOCUMENT)))
    assert {path for path in named if (ROOT / path / "__init__.py").exists()} <= KEPT


def test_quart_commands_exist() -> None:
    commands = re.findall(r"quart ([a-z]+)", read(DOCUMENT))
    assert commands
    for command in commands:
        result = subprocess.run(
            [str(Path(sys.executable).with_name("quart")), command, "--help"],
            cwd=ROOT,
            capture_output=True,
        )
        assert result.returncode == 0, command


def test_is_short() -> None:
    assert len(read(DOCUMENT).split()) < 500
