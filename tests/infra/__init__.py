"""Tests of the CDK app."""
