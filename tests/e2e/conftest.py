"""Fixtures for the tests of all parts together, on the stand-in for AWS."""

from tests.aws import aws, aws_server, batch_place

__all__ = ["aws", "aws_server", "batch_place"]
