"""Write a software bill of materials of the deployed packages: `make sbom`.

  python -m development.sbom [FILE]

The document is CycloneDX JSON. It lists the Python and npm packages in the lock files with their
hashes. The same lock files give the same document: it has no time and no random serial number.

cyclonedx-py runs in an environment of its own, so that its dependencies are not among the locked
packages.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from app.settings import ROOT
from development.audit import last_line

CYCLONEDX = "cyclonedx-bom==7.5.0"
SPEC_VERSION = "1.5"  # npm writes no newer one
DEFAULT_FILE = "build/sbom.cdx.json"


class SbomError(Exception):
    """A program failed; the message is shown to the user."""


def main() -> int:
    """Write the document; return the exit code."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / DEFAULT_FILE)
    try:
        document = merge(python_packages(), npm_packages())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")
    except SbomError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Cannot write {path}: {error.strerror}.", file=sys.stderr)
        return 1
    print(f"{path}: {len(document['components'])} packages")
    return 0


def python_packages() -> dict[str, Any]:
    """Return the CycloneDX document of requirements.txt."""
    return run(
        *(sys.executable, "-m", "uv", "tool", "run", "--quiet", "--from", CYCLONEDX),
        *("cyclonedx-py", "requirements", "--pyproject", "pyproject.toml"),
        *("--output-reproducible", "--of", "JSON", "--sv", SPEC_VERSION, "requirements.txt"),
    )


def npm_packages() -> dict[str, Any]:
    """Return the CycloneDX document of package-lock.json."""
    npm = shutil.which("npm")
    if npm is None:
        raise SbomError("npm is required, but not installed.")
    return run(npm, "sbom", "--sbom-format", "cyclonedx", "--package-lock-only")


def run(*command: str) -> dict[str, Any]:
    """Run a program in the repository; return the JSON object that it prints.

    Raises:
        SbomError: it failed.
    """
    result = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        name = "npm sbom" if "sbom" in command else "cyclonedx-py"
        raise SbomError(f"{name} failed: {last_line(result.stderr)}")
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def merge(python: dict[str, Any], npm: dict[str, Any]) -> dict[str, Any]:
    """Return the Python document with the npm packages added to it."""
    root = python["metadata"]["component"]["bom-ref"]
    npm_root = npm["metadata"]["component"]["bom-ref"]
    references = {each["name"]: each["bom-ref"] for each in python["components"]}
    dependencies = {
        each["ref"]: each.get("dependsOn", [])
        for each in (*python.get("dependencies", []), *npm["dependencies"])
    }
    dependencies[root] = [
        *(references[name] for name in direct_dependencies()),
        *dependencies.pop(npm_root),
    ]
    for component in python["components"]:
        del component["description"]  # the lines of requirements.txt
    return {
        **python,
        "metadata": {"component": python["metadata"]["component"]},  # without versions of tools
        "components": python["components"] + npm["components"],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(found)} for ref, found in sorted(dependencies.items())
        ],
    }


def direct_dependencies() -> list[str]:
    """Return the names of the packages that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = (re.split(r"[^A-Za-z0-9._-]", each)[0] for each in project["dependencies"])
    return sorted(re.sub(r"[-_.]+", "-", name).lower() for name in names)  # as in the lock file


if __name__ == "__main__":
    sys.exit(main())
