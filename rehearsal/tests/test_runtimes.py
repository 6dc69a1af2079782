"""The image's Python and its packages, global dependencies, and what is missing on this machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rehearsal import dependencies, runtimes
from rehearsal.configuration import Application
from rehearsal.findings import Severity, Verdict
from rehearsal.inspection import unreachable, unset_secret
from rehearsal.report import Report
from rehearsal.tests.sample import CONFIG, rehearse, sample, summary

YAML = ".upsun/config.yaml"
OWN = "{}.{}".format(*sys.version_info[:2])
# A package without dependencies, whose program prints its name.
PACKAGE = {
    "greeting/pyproject.toml": '[project]\nname = "greeting"\nversion = "1"\n'
    '[project.scripts]\ngreet = "greeting:main"\n'
    '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "greeting/greeting.py": "def main():\n    print('hello from greet')\n",
    # A build backend of its own, because the machine may have no access to others.
    "greeting/backend.py": """\
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    name, info = "greeting-1-py3-none-any.whl", "greeting-1.dist-info"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.write("greeting.py")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: greeting\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\ngreet = greeting:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
""",
}


def application(**values: object) -> Application:
    return Application.model_validate(values)


def problems(report: Report, severity: Severity) -> list[str]:
    return [finding.message for finding in report.findings if finding.severity is severity]


def machine_python(prefix: Path) -> Path:
    """Install a copy of this Python with pip and the package `leftover`; return its path.

    Containers see an interpreter below the state directory, but nothing else of `/tmp`.
    """
    own = runtimes.describe(sys._base_executable)  # type: ignore[attr-defined]
    assert own is not None
    library = prefix / Path(own.library).relative_to(Path(own.library).parents[1])
    library.mkdir(parents=True)
    for entry in Path(own.library).iterdir():
        if entry.name not in {"dist-packages", "site-packages"}:
            (library / entry.name).symlink_to(entry)
    program = prefix / "bin" / f"python{OWN}"
    program.parent.mkdir()
    shutil.copy2(own.path, program)
    copy = runtimes.describe(str(program))
    assert copy is not None
    packages = Path(copy.packages[0])
    packages.parent.mkdir(parents=True, exist_ok=True)
    runtimes.install(copy.bundled(), packages)
    (packages / "leftover.py").touch()
    (packages / "leftover-1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: leftover\nVersion: 1\n"
    (packages / "leftover-1.dist-info" / "METADATA").write_text(metadata)
    runtimes.describe.cache_clear()
    listed = subprocess.run([program, "-m", "pip", "list"], capture_output=True, text=True)
    assert "leftover" in listed.stdout
    return program


@pytest.mark.requires("bwrap", "nginx")
async def test_installed_package_runs_in_every_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip` is the image's, and finds none of the packages of this machine."""
    python = machine_python(tmp_path / "state" / "pythons" / "machine")
    monkeypatch.setattr(sys, "_base_executable", str(python))
    config = (
        CONFIG.replace("python:3.13", f"python:{OWN}")
        .replace(
            "mkdir built\n",
            "mkdir built\n        pip --version >built/pip\n"
            # With PIP_USER, it would list the packages of the user only.
            "        PIP_USER=0 pip3 list --format freeze >built/packages\n"
            f"        pip{OWN} install --no-index ./greeting\n        greet >built/build\n",
        )
        .replace("exec python3 serve.py", "greet >public/start; exec python3 serve.py")
        .replace("cp -R built/. public/", "cp -R built/. public/; greet >public/deploy")
    )
    repository = sample(tmp_path / "repository", **{YAML: config}, **PACKAGE)
    report = await rehearse(repository, tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    public = tmp_path / "state" / "environments" / "production" / "mounts" / "public"
    for name in ("build", "start", "deploy"):
        assert (public / name).read_text() == "hello from greet\n"
    assert (public / "pip").read_text().endswith(f"(python {OWN})\n")
    packages = {line.partition("==")[0] for line in (public / "packages").read_text().splitlines()}
    assert "pip" in packages
    assert packages <= {"pip", "setuptools"}


@pytest.mark.requires("bwrap", "nginx")
async def test_missing_python_is_not_rehearsed(tmp_path: Path) -> None:
    """A failure that may be due to the version that stands in is not a failure of the deploy."""
    config = CONFIG.replace("python:3.13", "python:3.99").replace(
        "mkdir built\n",
        "mkdir built; python3 -c 'import sys; sys.exit(sys.version_info < (3, 99))'\n",
    )
    repository = sample(tmp_path / "repository", **{YAML: config})
    report = await rehearse(repository, tmp_path / "state", force=True)
    found = problems(report, Severity.NOT_REHEARSED)
    assert any("Python 3.99 is not on this machine" in message for message in found)
    assert any("the build hook failed" in m and "Python 3.99" in m for m in found), summary(report)
    built = [finding for finding in report.findings if finding.stage == "build"]
    assert {finding.severity for finding in built} == {Severity.NOT_REHEARSED}


@pytest.mark.requires("bwrap", "nginx")
async def test_application_of_another_runtime_is_rehearsed_in_part(tmp_path: Path) -> None:
    config = CONFIG.replace("python:3.13", "php:8.4")
    repository = sample(tmp_path / "repository", **{YAML: config})
    report = await rehearse(repository, tmp_path / "state", force=True)
    assert report.verdict is Verdict.NOT_REHEARSED, summary(report)
    stages = [stage.name for stage in report.stages]
    assert "front" in stages
    assert "start" not in stages


@pytest.mark.requires("bwrap", "nginx")
async def test_unreachable_host_is_not_rehearsed(tmp_path: Path) -> None:
    command = "echo 'curl: (6) Could not resolve host: tools.example.com' >&2; exit 6"
    config = CONFIG.replace("mkdir built\n", f"{command}\n")
    report = await rehearse(sample(tmp_path / "repository", **{YAML: config}), tmp_path / "state")
    (message,) = problems(report, Severity.NOT_REHEARSED)
    assert "a connection to tools.example.com" in message
    assert report.verdict is Verdict.NOT_REHEARSED


def test_interpreter_of_the_wanted_version() -> None:
    assert runtimes.find_python(application(type=f"python:{OWN}")).version == OWN
    assert runtimes.find_python(application(type="nodejs:24")).version == OWN
    major, minor = OWN.split(".")
    near = runtimes.find_python(application(type=f"python:{major}.{int(minor) + 60}"))
    # The newest one of this machine, which is at least the one of these tests.
    assert int(near.version.split(".")[1]) >= int(minor)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"type": "python:3.13"}, {"python": "3.13"}),
        ({"type": "composable:26.05", "stack": {"runtimes": ["nodejs@24", "python@3.13"]}}, None),
        ({"stack": ["nodejs@24", {"python@3.13": {"extensions": []}}, "yarn"]}, None),
    ],
)
def test_runtimes_of_an_image(values: dict[str, object], expected: dict[str, str] | None) -> None:
    found = runtimes.runtimes(application(**values))
    assert found == (expected or {"nodejs": "24", "python": "3.13"})


@pytest.mark.parametrize(
    ("values", "commands", "unavailable"),
    [
        ({"type": "python:3.13"}, [], []),
        (
            {"dependencies": {"python3": {"uv": "*", "poetry": ">=1.8", "pipenv": "2024.4.1"}}},
            ["pip install uv 'poetry>=1.8' pipenv==2024.4.1"],
            [],
        ),
        (
            {"dependencies": {"nodejs": {"yarn": "1.22.19", "n": "*"}, "php": {"a/b": "^2"}}},
            ["npm install -g yarn@1.22.19 n@latest"],
            ["a/b (php)"],
        ),
        ({"type": "nodejs:24"}, ["npm prune && npm install"], []),
        ({"type": "nodejs:24", "build": {"flavor": "none"}}, [], []),
        (
            {
                "type": "composable:26.05",
                "stack": {
                    "runtimes": ["python@3.13"],
                    "packages": ["yarn", "python313Packages.yq", "wkhtmltopdf"],
                },
            },
            ["npm install -g yarn@latest", "pip install yq"],
            ["wkhtmltopdf"],
        ),
        ({"stack": ["python@3.13", "uv"]}, ["pip install uv"], []),
    ],
)
def test_what_is_installed_before_the_build_hook(
    values: dict[str, object],
    commands: list[str],
    unavailable: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dependencies, "is_reachable", lambda host: True)
    (tmp_path / "package.json").write_text(json.dumps({"name": "site"}))
    steps, missing = dependencies.plan(application(**values), tmp_path)
    assert [step.command for step in steps] == commands
    assert [package.name for package in missing] == unavailable


@pytest.mark.requires("bwrap", "nginx", "node")
async def test_node_stands_in_for_what_n_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generated configurations of Python projects with a front end install Node.js with `n`."""
    monkeypatch.setattr(dependencies, "is_reachable", lambda host: False)
    config = CONFIG.replace(
        "    hooks:\n", "    dependencies:\n      nodejs:\n        n: '*'\n    hooks:\n"
    ).replace("mkdir built\n", "mkdir built\n        n auto || n lts; hash -r; node --version\n")
    repository = sample(tmp_path / "repository", **{YAML: config})
    report = await rehearse(repository, tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    (note,) = [f for f in report.findings if "`n` cannot reach nodejs.org" in f.message]
    assert note.severity is Severity.NOTE
    assert "n: '*'" in config.splitlines()[note.line - 1]


@pytest.mark.parametrize(
    ("output", "host"),
    [
        ("curl: (6) Could not resolve host: github.com", "github.com"),
        ("wget: unable to resolve host address 'nodejs.org'", "nodejs.org"),
        (
            "npm error request failed, reason: getaddrinfo ENOTFOUND registry.example",
            "registry.example",
        ),
        ("error: Failed to fetch: `https://files.example/x.whl`", "files.example"),
        ("[Errno -3] Temporary failure in name resolution", "the Internet"),
        ("Package gunicorn (23.0.0) not found.", "PyPI's JSON interface, which Poetry uses"),
        (
            "npm error 404 Not Found - GET https://registry.example/@types/a/-/a-5.0.0.tgz",
            "a registry that has a-5.0.0.tgz",
        ),
        (
            'error Error: https://r.example/fs/-/fs-0.0.2.tgz: Request failed "404 Not Found"',
            "a registry that has fs-0.0.2.tgz",
        ),
        ("connection to server at 127.0.0.1 failed: Connection refused", None),
        ("Failed to connect to localhost port 5432", None),
    ],
)
def test_unreachable_hosts(output: str, host: str | None) -> None:
    assert unreachable(output) == host


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("KeyError: 'STRIPE_API_KEY'", "STRIPE_API_KEY"),
        ("or by setting the OPENAI_API_KEY environment variable", "OPENAI_API_KEY"),
        ("decouple.UndefinedValueError: SECRET_KEY not found. Declare it as envvar", "SECRET_KEY"),
        ("ImproperlyConfigured: Set the SECRET_KEY environment variable", "SECRET_KEY"),
        ("RuntimeError: BOT_TOKEN is not set", "BOT_TOKEN"),
        ("KeyError: 'DB_HOST'", None),  # probably a mistake in .environment
        ("KeyError: 'key'", None),
    ],
)
def test_unset_secrets(output: str, name: str | None) -> None:
    assert unset_secret(output) == name


@pytest.mark.requires("bwrap", "nginx")
async def test_secret_of_the_platform(tmp_path: Path) -> None:
    config = CONFIG.replace("mkdir built\n", 'mkdir built; echo "$A_TOKEN" >built/build\n').replace(
        "cp -R built/. public/",
        "cp -R built/. public/; python3 -c 'import os; os.environ[\"A_TOKEN\"]'",
    )
    repository = sample(tmp_path / "repository", **{YAML: config.replace("set -eu", "set -e")})
    report = await rehearse(repository, tmp_path / "state")
    (message,) = problems(report, Severity.NOT_REHEARSED)
    assert "the cause may be what is missing here: the variable A_TOKEN" in message
    report = await rehearse(repository, tmp_path / "state", variables={"A_TOKEN": "abc"})
    assert report.exit_code == 0, summary(report)
    public = tmp_path / "state" / "environments" / "production" / "mounts" / "public"
    assert (public / "build").read_text() == "abc\n"
