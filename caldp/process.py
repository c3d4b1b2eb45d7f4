"""One dataset is one straight line: from raw data to calibrated products and a truthful state.

Run as ``caldp-process`` or ``python -m caldp.process``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from caldp import config, instruments, messages
from caldp.config import DEFAULT_CONFIG, Config
from caldp.dataset import Dataset
from caldp.errors import CaldpError, DuplicateError, ExistsError, ReferencesError, Stop, describe
from caldp.instruments import Instrument
from caldp.manifest import read_manifest, verified
from caldp.messages import Claim, Status
from caldp.reporter import Outcome, Reporter
from caldp.store import Store, open_store, parse_uri

if TYPE_CHECKING:
    from caldp.run import Run

#: What to do about a dataset that is already processed.
EXISTING = ("error", "skip", "overwrite")


class Interrupts:
    """Turn SIGTERM, SIGINT and SIGHUP into an exception, where the run can be stopped."""

    def __init__(self) -> None:
        self._installed: list[int] = []
        self._armed = True
        self._held = False
        self._pending = 0

    def install(self) -> Interrupts:
        """Take the signals over; what the caller ignores (nohup) stays ignored."""
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._interrupt)
                self._installed.append(signum)
        return self

    def shield(self) -> None:
        """Let no further signal stop the run, nor the interpreter while it ends."""
        self._armed = False
        while self._installed:
            signal.signal(self._installed.pop(), signal.SIG_IGN)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep signals for ``check``."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def check(self) -> None:
        """Raise Stop if a signal came while they were held."""
        if self._pending:
            self._stop(self._pending)

    def _interrupt(self, signum: int, _frame: object) -> None:
        if self._held:
            self._pending = signum
        elif self._armed:
            self._stop(signum)

    def _stop(self, signum: int) -> None:
        self._armed = False  # a second signal must not cut the clean-up short
        raise Stop(signum)


#: For callers that handle signals themselves.
_UNTOUCHED = Interrupts()


@dataclass(frozen=True)
class Request:
    """What one command asks for.

    Attributes
    ----------
    dataset : str
        As typed.
    input, output : str
        URIs.
    config : str
        Config script.
    context : str
        CRDS context; empty for the config's.
    overrides : tuple of str
        ``TYPE=FILE``.
    existing : str
        One of ``EXISTING``.
    take_over : bool
        Take the dataset from a run that still holds it.
    attempt : int
        That whoever submitted it has counted, where a list says so; 0 for what the environment says.
    keep_scratch : bool
        Leave the workspace.
    """

    dataset: str
    input: str = "file:."
    output: str = "file:."
    config: str = DEFAULT_CONFIG
    context: str = ""
    overrides: tuple[str, ...] = ()
    existing: str = "overwrite"
    take_over: bool = False
    attempt: int = 0
    keep_scratch: bool = False


@dataclass(frozen=True)
class Job:
    """A request that makes sense: what it names exists."""

    request: Request
    dataset: Dataset
    recipe: Instrument
    settings: Config
    store: Store

    @property
    def claim(self) -> Claim:
        """On what grounds it begins."""
        settings = self.settings
        return Claim(
            settings.attempt, settings.job_attempt, settings.job, settings.owner_timeout, self.request.take_over
        )

    @classmethod
    def prepare(cls, request: Request) -> Job:
        """Check a request; UsageError when it makes no sense."""
        dataset = Dataset.parse(request.dataset)
        recipe = instruments.recipe(dataset)
        settings = config.load(request.config, context=request.context, overrides=request.overrides)
        settings = replace(settings, attempt=request.attempt or settings.attempt)
        scheme, place = parse_uri(request.input)
        if scheme == "astroquery":
            from caldp import mast

            mast.check(dataset, settings, place)
        return cls(request, dataset, recipe, settings, open_store(request.output, settings.aws))


def process(request: Request, reporter: Reporter, interrupts: Interrupts = _UNTOUCHED) -> Outcome:
    """Calibrate one dataset.

    Parameters
    ----------
    request : Request
        Which, from where, to where and how.
    reporter : Reporter
        Told of the progress.
    interrupts : Interrupts
        Whether signals may stop the run; by default they are left to the caller.

    Returns
    -------
    Outcome
        With the exit status; failures are reported in it, not raised.
    """
    with concluded(request, reporter, interrupts) as outcome:
        job = Job.prepare(request)
        with job.store.own(job.dataset.name, take_over=request.take_over):
            if not already_processed(job, outcome):
                calibrate_and_publish(job, reporter, interrupts, outcome)
    return outcome


def calibrate_and_publish(job: Job, reporter: Reporter, interrupts: Interrupts, outcome: Outcome) -> None:
    """Walk the straight line: every arrow of the design is one line here."""
    from caldp import calibrate, create_preview, inputs, publish, references

    with begun(job, reporter, interrupts, outcome) as run:
        raw = inputs.fetch(run, job.request.input)
        refs = references.assign(run, raw)
        products = calibrate.calibrate(run, raw, refs)
        previews = create_preview.preview(run, products)
        manifest = publish.publish(run, job.store, job.request.input, raw, refs, products, previews)
        messages.conclude(job.store, manifest.status())
        outcome.conclude(manifest.record, job.store.url(job.dataset.prefix))


def plan(request: Request, reporter: Reporter, interrupts: Interrupts = _UNTOUCHED) -> Outcome:
    """Say what ``process`` would do: the files it would take, the references, the programs.

    Writes no output; with ``astroquery:`` the inputs are downloaded all the same, and stay.

    Parameters
    ----------
    request, reporter, interrupts
        As for ``process``.

    Returns
    -------
    Outcome
        Its ``plan`` holds the answer.
    """
    with concluded(request, reporter, interrupts) as outcome:
        job = Job.prepare(request)
        from caldp import calibrate, inputs, references

        with opened(job, reporter, interrupts) as run:
            raw = inputs.fetch(run, request.input)
            refs = references.assign(run, raw, download=False)
            outcome.plan = {
                "inputs": [{"name": f.name, "source": f.source, "size": f.size} for f in raw.files],
                "references": [f.to_json() for f in refs.files],
                "programs": calibrate.commands(run, raw),
                "products": sorted(calibrate.expected(run, raw)),
                "output": job.store.url(job.dataset.prefix),
            }
            _tell_plan(run, outcome.plan)
        outcome.state, outcome.context, outcome.references = "planned", refs.context, len(refs.files)
    return outcome


def survey(request: Request, reporter: Reporter, interrupts: Interrupts = _UNTOUCHED) -> Outcome:
    """Say which references a dataset needs and whether each is present and intact.

    Writes no output; with ``astroquery:`` the inputs are downloaded all the same, and stay.

    Parameters
    ----------
    request, reporter, interrupts
        As for ``process``.

    Returns
    -------
    Outcome
        Its ``plan`` holds the answer; its exit status is that of a calibration where one is not.
    """
    with concluded(request, reporter, interrupts) as outcome:
        job = Job.prepare(request)
        from caldp import inputs, references

        with opened(job, reporter, interrupts) as run:
            found = references.survey(run, inputs.fetch(run, request.input))
        outcome.state, outcome.context, outcome.references = "planned", found.context, len(found.checked)
        outcome.plan = {
            "context": found.context,
            "crds": found.crds_version,
            "cache": str(job.settings.crds_path),
            "references": [checked.to_json() for checked in found.checked],
        }
        wrong = [checked for checked in found.checked if checked.problem]
        if wrong:
            raise ReferencesError(
                f"{job.dataset}: {len(wrong)} of {len(found.checked)} references cannot be used, first {wrong[0].name}",
                remedy="see the table; choose another --context, or give your own file with --override",
            )
    return outcome


def already_processed(job: Job, outcome: Outcome) -> bool:
    """Say whether the dataset is processed and is to be left alone.

    A run that was killed between publishing and saying so gets its state put right.  An attempt that the submitter has
    counted is not made again once it has published, whatever else was asked for.
    """
    counted = job.settings.attempt
    if job.request.existing == "overwrite" and not counted:
        return False
    last = messages.read(job.store, job.dataset.name)
    manifest = verified(job.store, job.dataset.prefix)
    if manifest is None or manifest.attempt < counted:
        return False
    if job.request.existing == "error" and not counted:
        raise ExistsError(
            f"{job.dataset}: already processed by attempt {manifest.attempt}",
            remedy="use --existing overwrite to calibrate it again, or --existing skip",
        )
    if last is not None and last.order > manifest.status().order and not last.done:
        return False  # a later attempt failed or was killed: try again
    messages.advance(job.store, manifest.status())
    outcome.conclude(manifest.record, job.store.url(job.dataset.prefix))
    outcome.state = "skipped"
    outcome.reason = f"already processed with {outcome.context}, and every file verified"
    return True


@contextmanager
def concluded(request: Request, reporter: Reporter, interrupts: Interrupts) -> Iterator[Outcome]:
    """Turn whatever happens inside into an exit status and a message: the only place that does."""
    outcome = Outcome(request.dataset)
    started = time.monotonic()
    reporter.start(request.dataset)
    try:
        yield outcome
    except BaseException as error:
        failure = describe(error, request.dataset)
        if isinstance(failure, DuplicateError):
            outcome.state = "duplicate"
        outcome.exit_code, outcome.reason, outcome.remedy = failure.code, failure.message, failure.remedy
    finally:
        interrupts.shield()
        outcome.seconds = time.monotonic() - started
        reporter.finish(outcome)


@contextmanager
def begun(job: Job, reporter: Reporter, interrupts: Interrupts, outcome: Outcome) -> Iterator[Run]:
    """Begin an attempt; an exception leaves the error state and the logs behind, whatever else fails."""
    from caldp import heartbeat, publish, result

    job.store.prepare(job.dataset.prefix)
    there = read_manifest(job.store, job.dataset.prefix)
    with interrupts.held():  # until it is known what to take back
        identity, published = job.settings.run or _identity(), there.attempt if there else 0
        try:
            mine = messages.begin(job.store, job.dataset.name, identity, published, job.claim)
        except (OSError, CaldpError) as error:
            failure = describe(error, job.dataset.name)
            _leave(reporter, "state", lambda: messages.abandon(job.store, job.dataset.name, identity, failure))
            raise
    outcome.attempt, outcome.location = mine.attempt, job.store.url(job.dataset.prefix)
    leave = partial(_leave, reporter, "result")
    try:
        interrupts.check()
        with (
            result.recorded(job.store, mine, bool(job.settings.attempt), leave) as record,
            opened(job, reporter, interrupts, mine) as run,
            heartbeat.beating(job.store, mine, job.settings.owner_timeout, run.telemetry.cancel_programs) as heart,
        ):
            record.run = run
            try:
                run.telemetry.info(f"attempt {mine.attempt}, run {mine.run}, {job.settings.name}")
                yield run
            except BaseException as error:
                interrupts.shield()
                failure = messages.taken_over(mine) if heart.lost else describe(error, job.dataset.name)
                run.telemetry.error(str(failure), cause=error)
                if _leave(reporter, "logs", lambda: messages.owns(job.store, mine)):
                    _leave(reporter, "logs", lambda: publish.publish_logs(run, job.store))
                raise failure from error
            finally:
                outcome.warnings = len(run.telemetry.warnings)
                outcome.scratch = str(run.workspace.root) if run.keep_scratch else ""
    except BaseException as error:
        interrupts.shield()
        failure = describe(error, job.dataset.name)
        # A run that lost its dataset to another one changes nothing: its status is no longer the highest.
        if _leave(reporter, "state", lambda: messages.advance(job.store, mine.failed(failure))[1]):
            outcome.state = "error"
        raise failure from error


@contextmanager
def opened(job: Job, reporter: Reporter, interrupts: Interrupts, mine: Status | None = None) -> Iterator[Run]:
    """Open the workspace and the log of a run; one that only looks has no attempt."""
    from caldp.run import Run
    from caldp.telemetry import Telemetry
    from caldp.workspace import open_workspace

    mine = mine or Status(job.dataset.name, 0, "placed", run=_identity())
    keep = job.request.keep_scratch
    with open_workspace(job.settings.home, job.dataset.name, mine.run, keep=keep) as workspace:
        telemetry = Telemetry(job.dataset.name, workspace.logs, reporter, job.settings.secrets)
        try:
            yield Run(
                id=mine.run,
                dataset=job.dataset,
                recipe=job.recipe,
                config=job.settings,
                workspace=workspace,
                telemetry=telemetry,
                attempt=mine.attempt,
                retry=mine.retry,
                output=job.store.uri,
                started=mine.at,
                shield=interrupts.shield,
                keep_scratch=keep,
            )
        finally:
            telemetry.close()


def _tell_plan(run: Run, answer: dict[str, Any]) -> None:
    for file in answer["inputs"]:
        run.telemetry.info(f"would take {file['source']} ({file['size']} bytes)")
    for file in answer["references"]:
        run.telemetry.info(f"would use {file['type']} {file['name']}{' (override)' if file['override'] else ''}")
    for argv in answer["programs"]:
        run.telemetry.info(f"would run {' '.join(argv)}")
    for name in answer["products"]:
        run.telemetry.info(f"would deliver {name} to {answer['output']}")


def _identity() -> str:
    return os.urandom(6).hex()


def _leave(reporter: Reporter, what: str, write: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever write returns
    """Write evidence of a failure; that this fails too must not hide the failure."""
    try:
        return write()
    except (OSError, CaldpError) as error:
        reporter.message("ERROR", f"the {what} could not be written: {error}")
        return None


def main() -> None:
    """Run ``caldp-process``."""
    from caldp.cli import process_command

    process_command()


if __name__ == "__main__":
    main()
