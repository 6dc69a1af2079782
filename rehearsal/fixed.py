"""Translate the configuration of Upsun Fixed, formerly Platform.sh, to that of Upsun Flex.

Source: "Migrating from Fixed" in the documentation of Upsun Flex, and the configuration reference
of Upsun Fixed at https://fixed.docs.upsun.com.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

APPLICATION = ".platform.app.yaml"
DIRECTORY = ".platform"
APPLICATIONS = f"{DIRECTORY}/applications.yaml"
SECTIONS = {"services": f"{DIRECTORY}/services.yaml", "routes": f"{DIRECTORY}/routes.yaml"}
DEPTH = 3  # of the directories that may contain the file of an application
# Upsun Flex sizes containers and disks with `upsun resources:set`.
SIZES = {"disk", "size"}


def application_files(directory: Path) -> list[Path]:
    """Return the files with one application each, in the order of their names."""
    patterns = ("*/" * depth + APPLICATION for depth in range(DEPTH))
    return sorted(path for pattern in patterns for path in directory.glob(pattern))


def is_fixed(directory: Path) -> bool:
    """Return whether a directory is that of a project on Upsun Fixed."""
    return (directory / APPLICATIONS).is_file() or bool(application_files(directory))


def application(described: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Translate one application.

    Args:
        described: its mapping in the file.
        root: the directory of its file relative to the root of the repository; "" for the root.
    """
    translated = _without_sizes(described)
    translated.pop("name", None)
    if root:
        translated["source"] = {"root": f"/{root}", **(translated.get("source") or {})}
    workers = described.get("workers")
    if isinstance(workers, Mapping):
        translated["workers"] = {
            name: _without_sizes(worker) if isinstance(worker, Mapping) else worker
            for name, worker in workers.items()
        }
    mounts = described.get("mounts")
    if isinstance(mounts, Mapping):
        translated["mounts"] = {key: _mount(mount) for key, mount in mounts.items()}
    return translated


def service(described: object) -> object:
    """Translate one service."""
    return _without_sizes(described) if isinstance(described, Mapping) else described


def _mount(mount: object) -> object:
    if isinstance(mount, str) and mount.startswith("shared:files"):
        return {"source": "storage", "source_path": mount.removeprefix("shared:files").strip("/")}
    if isinstance(mount, Mapping) and mount.get("source") == "local":
        return {**mount, "source": "storage"}
    return mount


def _without_sizes(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key not in SIZES}
