"""The releases that the rehearsals of this application share."""

import pytest

from tests.rehearsal.releases import Releases, build_images, make_releases
from tests.tools import require


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """For tests in the group `builds` alone: elsewhere they would be built once more."""
    return make_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="session")
async def built(releases: Releases) -> Releases:
    """The releases with their images: no build is to take the processor away from visitors."""
    require("bwrap")
    await build_images(releases)
    return releases
