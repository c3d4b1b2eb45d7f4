"""Fixtures for all tests: see tests/desk.py."""

pytest_plugins = ["tests.desk"]
