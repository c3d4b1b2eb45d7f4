"""Every way a run can fail, with its exit code and whether trying again can help.

The tree (exit code)::

    CaldpError (1)
    +-- UsageError (2)               bad dataset id, URI, option or config name
    |   `-- UnsupportedError (2)     a valid HST dataset that this version does not calibrate
    +-- InputError (21)              missing, empty or unusable inputs
    +-- AstroqueryError (22)         MAST retrieval failed after retries          retry
    +-- Stage1Error (23)             calibration program failed, or its products are missing
    +-- Stage2Error (24)             the same for the second program (drizzle)
    +-- S3UploadError (25)           an object could not be written to S3         retry
    |   `-- S3UploadRefusedError (25)     S3 does not let us: no credentials, no bucket, denied
    +-- S3DownloadError (26)         an object could not be read from S3          retry
    |   `-- S3DownloadRefusedError (26)   the same for reading
    +-- ReferencesError (27)         CRDS: unknown context, missing or damaged reference
    |   `-- ReferencesUnavailableError (27)  its server does not answer, or deliver  retry
    +-- PreviewError (28)            a preview could not be made
    +-- OutputError (29)             outputs or scratch cannot be written: permission, full disk
    +-- ProgramMemoryError (31)      the calibration program ran out of memory    retry with more memory
    +-- CaldpMemoryError (32)        CALDP itself ran out of memory               retry with more memory
    +-- ContainerMemoryError (33)    the container was killed for memory          retry with more memory
    +-- SystemMemoryError (34)       the system cannot allocate memory            retry with more memory
    +-- DuplicateError (0)           another job has this attempt, or had it: nothing is to do
    +-- BusyError (35)               another run owns this dataset                retry later
    +-- ExistsError (36)             already processed, and --existing error
    +-- SvmError (40), MvmError (41) single- and multi-visit mosaics
    +-- EngineError (125)            Docker cannot do what was asked of it
    `-- Interrupted (128 + signal)   SIGHUP 129, SIGINT 130, SIGKILL 137, SIGTERM 143   retry

Codes up to 34, 40 and 41 are those the HST archive pipeline has always used, but for 29; 29, 35 and 36 are ours.
125 is that of ``docker run``.
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import ClassVar


class CaldpError(Exception):
    """A failure that CALDP understands.

    Parameters
    ----------
    message : str
        What happened, naming the dataset and the file, in one line.
    remedy : str, optional
        What the reader should do next.
    """

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.remedy = " ".join(remedy.split())

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    @property
    def code(self) -> int:
        """Exit status of a run that ends with this error."""
        return self.exit_code

    @property
    def name(self) -> str:
        """Name of the code in the table of exit codes."""
        return EXIT_CODES.get(self.code, ("GENERIC_ERROR", ""))[0]


class UsageError(CaldpError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class UnsupportedError(UsageError):
    """The dataset is a real kind of HST data, but not one this version calibrates."""


class InputError(CaldpError):
    """Raw data missing, empty or unusable."""

    exit_code = 21


class AstroqueryError(CaldpError):
    """MAST did not deliver."""

    exit_code = 22
    retriable = True


class Stage1Error(CaldpError):
    """The calibration program failed, or did not write what it should have."""

    exit_code = 23


class Stage2Error(CaldpError):
    """The second calibration program (drizzle) failed, or did not write what it should have."""

    exit_code = 24


class S3UploadError(CaldpError):
    """An object could not be written to S3."""

    exit_code = 25
    retriable = True


class S3UploadRefusedError(S3UploadError):
    """S3 does not let us write: no credentials, no such bucket, access denied."""

    retriable = False


class S3DownloadError(CaldpError):
    """An object could not be read from S3."""

    exit_code = 26
    retriable = True


class S3DownloadRefusedError(S3DownloadError):
    """S3 does not let us read: no credentials, no such bucket or object, access denied."""

    retriable = False


class ReferencesError(CaldpError):
    """Best references could not be assigned, or a reference file is missing or damaged."""

    exit_code = 27


class ReferencesUnavailableError(ReferencesError):
    """The CRDS server, or the store that takes its place, does not answer, or does not deliver a reference file."""

    retriable = True


class PreviewError(CaldpError):
    """A preview could not be made."""

    exit_code = 28


class OutputError(CaldpError):
    """Outputs or scratch files cannot be written."""

    exit_code = 29


class ProgramMemoryError(CaldpError):
    """A calibration program ran out of memory."""

    exit_code = 31
    retriable = True


class CaldpMemoryError(CaldpError):
    """CALDP itself ran out of memory."""

    exit_code = 32
    retriable = True


class ContainerMemoryError(CaldpError):
    """The container was killed for memory; set by whoever started it."""

    exit_code = 33
    retriable = True


class SystemMemoryError(CaldpError):
    """The operating system could not allocate memory."""

    exit_code = 34
    retriable = True


class DuplicateError(CaldpError):
    """Another job has the attempt that this one was submitted for, or had it: nothing is to do, nothing was changed."""

    exit_code = 0


class BusyError(CaldpError):
    """Another live run owns the dataset; nothing was changed."""

    exit_code = 35
    retriable = True


class ExistsError(CaldpError):
    """The dataset is already processed and the caller asked not to touch it."""

    exit_code = 36


class SvmError(CaldpError):
    """runsinglehap failed."""

    exit_code = 40


class MvmError(CaldpError):
    """runmultihap failed."""

    exit_code = 41


class EngineError(CaldpError):
    """The Docker engine cannot be used, or cannot do what was asked of it."""

    exit_code = 125


class Stop(BaseException):
    """Raised by our signal handler: not an Exception, so that nothing on the way takes it for a failure of its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Interrupted(CaldpError):  # noqa: N818 - the field's word; it is a signal, not a mistake
    """A signal asked the run, of a dataset or of another command, to stop."""

    retriable = True

    def __init__(self, signum: int, dataset: str = "") -> None:
        self.signum = signum
        super().__init__(f"{_of(dataset)}stopped by {signal.Signals(signum).name}", remedy="run the same command again")

    @property
    def code(self) -> int:
        return 128 + self.signum


EXIT_CODES: dict[int, tuple[str, str]] = {
    0: (
        "SUCCESS",
        "processed (or already processed, with --existing skip, or a duplicate job); the manifest is verified",
    ),
    1: ("GENERIC_ERROR", "unforeseen: please report it with the log"),
    2: ("CMDLINE_ERROR", "bad dataset id, URI, option or config name"),
    21: ("INPUT_TAR_FILE_ERROR", "inputs missing, empty or unusable"),
    22: ("ASTROQUERY_ERROR", "MAST retrieval failed after retries"),
    23: ("STAGE1_ERROR", "the calibration program failed, or a product it should have written is missing"),
    24: ("STAGE2_ERROR", "the same for the second program (drizzle)"),
    25: ("S3_UPLOAD_ERROR", "an object could not be written to S3"),
    26: ("S3_DOWNLOAD_ERROR", "an object could not be read from S3"),
    27: ("BESTREFS_ERROR", "unknown CRDS context, or a reference file missing or damaged"),
    28: ("CREATE_PREVIEWS_ERROR", "a preview could not be made"),
    29: ("OUTPUT_ERROR", "outputs or scratch cannot be written: permission, full disk"),
    31: ("SUBPROCESS_MEMORY_ERROR", "the calibration program ran out of memory"),
    32: ("CALDP_MEMORY_ERROR", "CALDP itself ran out of memory"),
    33: ("CONTAINER_MEMORY_ERROR", "the container was killed for memory"),
    34: ("OS_MEMORY_ERROR", "the operating system could not allocate memory"),
    35: ("BUSY_ERROR", "another live run owns this dataset; nothing was changed"),
    36: ("EXISTS_ERROR", "already processed, and --existing error was given; nothing was changed"),
    40: ("SVM_ERROR", "runsinglehap failed"),
    41: ("MVM_ERROR", "runmultihap failed"),
    125: ("ENGINE_ERROR", "Docker cannot be used, or cannot build, push or run the image"),
    129: ("HANGUP", "stopped because the terminal closed (SIGHUP); an attempt that had begun is in state error"),
    130: ("INTERRUPTED", "stopped by Ctrl-C (SIGINT); an attempt that had begun is in state error"),
    137: ("KILLED", "container or CALDP killed (SIGKILL), not for memory; an attempt that had begun is in state error"),
    143: ("TERMINATED", "stopped by SIGTERM; an attempt that had begun is in state error"),
}


def describe(error: BaseException, dataset: str) -> CaldpError:
    """Turn any exception into the CaldpError that explains it.

    Parameters
    ----------
    error : BaseException
        What was raised.
    dataset : str
        Named in the message of errors that did not expect to be raised; may be empty.

    Returns
    -------
    CaldpError
        ``error`` itself when it already is one.
    """
    if isinstance(error, CaldpError):
        return error
    if isinstance(error, Stop):
        return Interrupted(error.signum, dataset)
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(signal.SIGINT, dataset)
    if isinstance(error, MemoryError):
        return CaldpMemoryError(f"{_of(dataset)}CALDP ran out of memory", remedy="run it with more memory")
    if isinstance(error, OSError):
        return _describe_oserror(error, dataset)
    if type(error).__module__.partition(".")[0] == "botocore":
        return CaldpError(
            f"{_of(dataset)}AWS says: {error}", remedy="check the credentials, the region and what they allow"
        )
    return CaldpError(
        f"{_of(dataset)}unforeseen {type(error).__name__}: {error}",
        remedy="please report it, with logs/process.txt if there is one",
    )


def _of(dataset: str) -> str:
    """Return how a message begins that names a dataset, if there is one."""
    return f"{dataset}: " if dataset else ""


def _describe_oserror(error: OSError, dataset: str) -> CaldpError:
    where = error.filename2 or error.filename or "a file"
    where = Path(where) if isinstance(where, str) else where
    if error.errno == errno.ENOMEM:
        return SystemMemoryError(f"{_of(dataset)}the system cannot allocate memory", remedy="run it with more memory")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{_of(dataset)}no space left while writing {where}",
            remedy="free space there, or point CALDP_HOME (scratch) or the output at another disk",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{_of(dataset)}not allowed to use {where} ({error.strerror})",
            remedy="choose an output (and CALDP_HOME) that you may write",
        )
    return OutputError(f"{_of(dataset)}{where}: {error.strerror or error}", remedy="check that path")
