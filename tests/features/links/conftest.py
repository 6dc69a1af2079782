"""Fixtures for the tests of this feature."""

from tests.features.links.announcements import announced

__all__ = ["announced"]
