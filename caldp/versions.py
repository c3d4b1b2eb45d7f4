"""Versions of what makes products."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

import caldp


def installed() -> dict[str, str]:
    """Return the versions of CALDP, Python and the packages that decide what products are, by name."""
    versions = {"caldp": caldp.__version__, "python": platform.python_version()}
    for package in ("astropy", "numpy", "drizzlepac", "photutils", "stwcs", "spec-plots"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # no reason to lose the products
            versions[package] = importlib.metadata.version(package)
    return versions
