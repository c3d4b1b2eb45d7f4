"""The metadata is in pyproject.toml; what is here are the scripts that a shell sources."""

from setuptools import setup

setup(
    scripts=[
        "scripts/caldp-config-onsite",
        "scripts/caldp-config-offsite",
        "scripts/caldp-config-aws",
        "scripts/caldp-image-config",
    ]
)
