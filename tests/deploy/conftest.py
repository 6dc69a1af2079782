"""Releases of this application, and their images."""

from pathlib import Path

import pytest

from quart_upsun.testing.programs import require
from tests.deploy.releases import Releases, build_images, make_releases


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """Releases of this application.

    Only for tests in the xdist group `builds`. Other workers would build them again.
    """
    return make_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
async def images(releases: Releases) -> dict[str, Path]:
    """The images that the build hook creates for the first two releases, by revision."""
    require("bwrap")
    return await build_images(releases)


@pytest.fixture
def built(releases: Releases, images: dict[str, Path]) -> Releases:
    """The releases, after their images are built, so that no build slows down the test."""
    return releases
