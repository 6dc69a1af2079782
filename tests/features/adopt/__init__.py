"""Tests of app/adopt that need no Flask application."""
