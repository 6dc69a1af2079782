"""The command `validate`: paths, exit codes and formats."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rehearsal.tests.sample import git
from rehearsal.tests.test_acceptance import BASE, ROUTES

HERE = Path(__file__).resolve().parents[2]  # where the package can be imported from
GOOD = BASE.replace("type: python:3.13", "type: python:3.13\n    container_profile: BALANCED")
BAD = GOOD.replace("commands:", "comands:")
LINE = 1 + BAD[: BAD.index("comands")].count("\n")


def run(directory: Path, *arguments: str) -> tuple[int, str]:
    """Run the command in a directory; return its exit code and output."""
    result = subprocess.run(
        [sys.executable, "-m", "rehearsal", "validate", *arguments],
        cwd=directory,
        env={"PYTHONPATH": str(HERE), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout + result.stderr


def project(directory: Path, text: str = GOOD) -> Path:
    (directory / ".upsun").mkdir(parents=True)
    (directory / ".upsun" / "config.yaml").write_text(text)
    return directory


def test_project_in_the_current_directory(tmp_path: Path) -> None:
    code, output = run(project(tmp_path))
    assert (code, output) == (0, "The platform would accept the configuration. Findings: none.\n")
    (tmp_path / "src").mkdir()
    assert run(tmp_path / "src")[0] == 0  # found in a parent directory


def test_rejected_configuration_has_file_and_line(tmp_path: Path) -> None:
    code, output = run(project(tmp_path, BAD))
    assert code == 1
    assert f"error: .upsun/config.yaml:{LINE}: applications.app.web.comands" in output
    assert "did you mean `commands`?" in output
    assert "would reject" in output


def test_file_outside_of_any_repository(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    assert run(tmp_path, "good.yaml")[0] == 0
    code, output = run(tmp_path, "good.yaml", "bad.yaml")
    assert code == 1
    assert f"bad.yaml:{LINE}: " in output
    assert "good.yaml" not in output


def test_files_of_one_project_are_checked_together(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / ".upsun" / "routes.yaml").write_text(ROUTES)
    paths = [".upsun/config.yaml", ".upsun/routes.yaml"]
    for arguments in (["."], [".upsun"], paths, paths[1:]):
        assert run(tmp_path, *arguments)[0] == 0, arguments
    (tmp_path / ".upsun" / "routes.yaml").write_text(ROUTES.replace("app:http", "ap:http"))
    code, output = run(tmp_path, *paths)
    assert code == 1
    assert output.count("error: .upsun/routes.yaml:4: ") == 1


def test_strict_counts_warnings_as_errors(tmp_path: Path) -> None:
    project(tmp_path, GOOD.replace("python:3.13", "python:3.12"))
    code, output = run(tmp_path)
    assert code == 0
    assert "1 warning" in output
    assert run(tmp_path, "--strict")[0] == 1


@pytest.mark.parametrize("arguments", [["nowhere"], ["--format", "xml"]])
def test_usage_error_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    assert run(project(tmp_path), *arguments)[0] == 2


def test_directory_without_configuration_is_rejected(tmp_path: Path) -> None:
    code, output = run(tmp_path)
    assert code == 1
    assert ".upsun/config.yaml does not exist" in output


def test_unreadable_include_is_an_error_only_in_a_repository(tmp_path: Path) -> None:
    text = f"{GOOD}    hooks: {{build: !include {{type: string, path: build.sh}}}}\n"
    project(tmp_path, text)
    code, output = run(tmp_path)
    assert code == 0
    assert "not rehearsed: .upsun/config.yaml:11: " in output
    git(tmp_path, "init", "--quiet")
    assert run(tmp_path)[0] == 1
    (tmp_path / "build.sh").write_text("make\n")
    assert run(tmp_path)[0] == 0


def test_json(tmp_path: Path) -> None:
    code, output = run(project(tmp_path, BAD), "--json")
    document = json.loads(output)
    assert code == 1
    assert document["ok"] is False
    (finding,) = [f for f in document["findings"] if f["severity"] == "error"]
    assert (finding["file"], finding["line"]) == (".upsun/config.yaml", LINE)
    assert finding["place"] == f".upsun/config.yaml:{LINE}"


def test_github_annotations(tmp_path: Path) -> None:
    project(tmp_path, BAD.replace("comands", "100%"))
    code, output = run(tmp_path, "--format", "github")
    assert code == 1
    first = output.splitlines()[0]
    assert first.startswith(f"::error file=.upsun/config.yaml,line={LINE},title=upsun-rehearse::")
    assert "applications.app.web.100%25 is an unknown key; effect: " in first


def test_sarif(tmp_path: Path) -> None:
    code, output = run(project(tmp_path, BAD), "--format", "sarif")
    assert code == 1
    (log,) = json.loads(output)["runs"]
    (result,) = [result for result in log["results"] if result["level"] == "error"]
    assert result["ruleId"] in {rule["id"] for rule in log["tool"]["driver"]["rules"]}
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == ".upsun/config.yaml"
    assert place["region"]["startLine"] == LINE


def test_slow_modules_are_not_imported(tmp_path: Path) -> None:
    project(tmp_path)
    code = (
        "import sys; sys.argv[1:] = ['validate']; from rehearsal.__main__ import main; main();"
        " print(sorted({'aiohttp', 'asyncpg', 'httpx', 'jsonschema'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
