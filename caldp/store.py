"""Where bytes live: one small interface over a folder (and, by the same words, over S3).

A key is a relative path with forward slashes, for example ``messages/status/ldfd01010.json``.  Small objects are
read and written whole with a tag (``etag``) so that a writer can say "only if nobody changed it meanwhile".  A tree
of products is published in one step: readers see the old one or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from caldp.errors import UnsupportedError, UsageError


class ConflictError(Exception):
    """A conditional put found another version than the caller expected."""


@dataclass(frozen=True)
class Overwrite:
    """Put whatever is there."""


@dataclass(frozen=True)
class Create:
    """Put only if nothing is there (``If-None-Match: *``)."""


@dataclass(frozen=True)
class Update:
    """Put only if the version there is the one with this tag (``If-Match``)."""

    etag: str


PutMode = Overwrite | Create | Update
