"""The releases that the rehearsals of this application share."""

import pytest

from tests.rehearsal.releases import Releases, make_releases


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """For tests in the group `builds` alone: elsewhere they would be built once more."""
    return make_releases(tmp_path_factory.mktemp("releases"))
