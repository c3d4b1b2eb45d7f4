"""Fixtures for all tests: see tests/desk.py and tests/s3.py."""

pytest_plugins = ["tests.desk", "tests.s3"]
