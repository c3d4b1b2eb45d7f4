"""The notebooks that teach how to submit to CRDS, run cell by cell against a CRDS of ours, by the stock client.

The cells are taken from the seeds as they are; whatever is changed in them is in one table, ``SUBSTITUTIONS``.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from bs4 import BeautifulSoup

from tests import crds
from tests.crds import Client, CrdsServer, Person, error_of, setup_line, signed_in, text_of
from tests.desk import DATA, require, shim

crds_place, crds_server, make_crds = crds.crds_place, crds.crds_server, crds.make_crds
stock_jwst, person = crds.stock_jwst, crds.person

SEEDS = DATA.parent / "seeds"
PROGRAMMATIC, DEVELOPERS = "crds-programmatic-submission.txt", "crds-submit-for-developers.txt"
CONTEXT = "jwst_0541.pmap"

#: All that is changed in the cells: what, by what, why. Words in braces are known when the test runs.
SUBSTITUTIONS = [
    (r'"https://jwst-crds-bit\.stsci\.edu"', '"{url}"', "our server"),
    (r'"https://" \+ PROJECT \+ "-crds-" \+ USECASE \+ "\.stsci\.edu"', '"{url}"', "our server"),
    (r"REDACTED-EXAMPLE-TOKEN", "{token}", "the token of a user of ours"),
    (r"jwst_0641\.pmap", CONTEXT, "the newest context that is here"),
    (
        r'datetime\.datetime\.utcnow\(\)\.isoformat\(timespec="seconds"\)',
        '"2018-01-01T00:00:00"',
        "the text around it, and the last cell, go by a notebook that was run for this date",
    ),
    (r'"your-context-here"$', "input()", "the context that the page of the confirmation has named"),
    (r'"/tmp/crds_cache_demo"', '"{demo}"', "a folder of the test, not of the machine"),
    (r"^! ?(.*)$", "shell(f'''\\1''')", "a command of the shell, which is no Python"),
    (r"^(?=from crds\.submit import )", "{setup}\n", "where a stock client finds the form: caldp crds client-setup"),
]

#: Runs cells as a notebook does: the value of the last line is shown.
RUNNER = """
import ast, json, subprocess, sys
names = {"shell": lambda line: subprocess.run(line, shell=True, check=True), "__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1])), 1):
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        if value is not None:
            print(f"Out[{number}]: {value!r}")
    print(f"cell {number} is done", flush=True)
"""


# --- cells -------------------------------------------------------------------------------------------------------


def is_python(text: str) -> bool:
    """Whether a text could be a cell."""
    try:
        ast.parse(re.sub(r"^!.*$", "0", text, flags=re.MULTILINE))
    except SyntaxError:
        return False
    return True


def shows(text: str) -> bool:
    """Whether a cell ends in an expression, whose value a notebook shows below it."""
    return isinstance(ast.parse(re.sub(r"^!.*$", "0", text, flags=re.MULTILINE)).body[-1], ast.Expr)


def cells(text: str) -> list[str]:
    """Return the cells of a notebook that was printed as text.

    A cell begins at ``In [n]:``.  Of the paragraphs after it, the first is its code, and so is each that follows, as
    long as it is Python and no value was to be shown before.
    """
    found = []
    for block in re.split(r"^In \[[^\]]*\]:\n", text, flags=re.MULTILINE)[1:]:
        first, *others = block.split("\n\n")
        code = first.rstrip()
        for paragraph in others:
            heading = re.match(r"\s*(##|$)", paragraph)
            commented = all(line.startswith("#") for line in code.splitlines())
            if heading or not (commented or not shows(code)) or not is_python(f"{code}\n\n{paragraph}"):
                break
            code = f"{code}\n\n{paragraph.rstrip()}"
        found.append(code)
    return found


def substituted(cell: str, known: Mapping[str, str]) -> str:
    """Return a cell with all that the table says."""
    for what, by, _ in SUBSTITUTIONS:
        filled = re.sub(r"\{(url|token|demo|setup)\}", lambda match: known[match[1]].replace("\\", r"\\"), by)
        cell = re.sub(what, filled, cell, flags=re.MULTILINE)
    return cell


def seed(name: str) -> str:
    """Return the text of a notebook."""
    require((SEEDS / name).is_file(), f"no {SEEDS / name}")
    return (SEEDS / name).read_text()


KNOWN = {"url": "URL", "token": "TOKEN", "demo": "DEMO", "setup": "SETUP"}


@pytest.mark.parametrize(
    ("name", "number", "changed"),
    [
        (
            PROGRAMMATIC,
            16,
            [
                'MAST_API_TOKEN = "TOKEN"',
                'os.environ["CRDS_SERVER_URL"] = "URL"',
                '    context="jwst_0541.pmap",',
                "shell(f'''cp {result[\"readnoise\"]} ./jwst_nircam_readnoise_new.fits''')",
                'hdul[0].header["USEAFTER"] = "2018-01-01T00:00:00"',
                "SETUP",
                'submission = Submission("jwst", "bit", context="jwst_0541.pmap")',
                "NEW_CONTEXT = input()",
            ],
        ),
        (
            DEVELOPERS,
            7,
            [
                'os.environ["CRDS_SERVER_URL"] = "URL"',
                'os.environ["MAST_API_TOKEN"] = "TOKEN"',
                "shell(f'''crds list --status''')",
                'os.environ["CRDS_PATH"] = "DEMO"',
                "shell(f'''crds sync --output-dir=. --files jwst_miri_dark_0057.fits "
                "--organize=flat --repair-files''')",
                "shell(f'''crds_unique CRDSUNIQ *.fits''')",
                "shell(f'''crds sync --contexts jwst-edit --repair-files''')",
                "SETUP",
            ],
        ),
    ],
)
def test_nothing_is_changed_in_the_cells_but_what_the_table_says(name: str, number: int, changed: list[str]) -> None:
    found = cells(seed(name))
    assert len(found) == number, found
    before = [line for cell in found for line in cell.splitlines()]
    after = [line for cell in found for line in substituted(cell, KNOWN).splitlines()]
    assert [line for line in after if line not in before] == changed
    kept = [line for line in after if line in before]
    assert kept == [line for line in before if line in after]
    assert len(before) - len(kept) == len(changed) - changed.count("SETUP")


# --- a notebook --------------------------------------------------------------------------------------------------


@dataclass
class Notebook:
    """A notebook that is run by a process of its own."""

    opened: Path
    stdin: IO[str]
    lines: list[str]
    process: Any

    def wait_for(self, words: str, timeout: float = 180) -> str:
        """Wait for a line that holds these words; return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for line in list(self.lines):
                if words in line:
                    return line
            if self.process.poll() is not None and not any(words in line for line in self.lines):
                break
            time.sleep(0.1)
        raise AssertionError(f"no {words!r} in\n{self.text}")

    @property
    def text(self) -> str:
        """All that it has written."""
        return "".join(self.lines)

    def out(self, number: int) -> str:
        """Return the value that was shown below a cell."""
        return self.wait_for(f"Out[{number}]: ").partition(": ")[2]

    def end(self) -> None:
        """Wait for its end, which must be a good one."""
        code = self.process.wait(180)
        assert code == 0, self.text


@contextmanager
def notebook(client: Client, server: CrdsServer, name: str) -> Iterator[Notebook]:
    """Run a notebook as ann."""
    known = {
        "url": server.jwst,
        "token": server.tokens["ann"],
        "demo": str(client.home / "demo-cache"),
        "setup": setup_line(),
    }
    (client.home / "cells.json").write_text(json.dumps([substituted(cell, known) for cell in cells(seed(name))]))
    (client.home / "runner.py").write_text(RUNNER)
    opened = client.home / "opened"
    browser = shim(client.home / "bin", "browser", f'echo "$1" > "{opened}"') / "browser"
    # The notebooks name server and cache themselves; who signs in is known from elsewhere.
    env = {k: v for k, v in client.env.items() if not k.startswith(("CRDS_", "MAST_"))}
    env |= {"CRDS_USERNAME": signed_in(server, "ann")["CRDS_USERNAME"], "BROWSER": f"{browser} %s"}
    process = subprocess.Popen(
        [sys.executable, "-u", "runner.py", "cells.json"],
        cwd=client.home,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin and process.stdout
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or []), daemon=True)
    reader.start()
    try:
        yield Notebook(opened, process.stdin, lines, process)
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        process.stdin.close()
        process.stdout.close()


def review(server: CrdsServer, url: str, instrument: str) -> tuple[Person, str, str]:
    """Sign in and look at what is to be confirmed, as people do; return who, the id and what they read."""
    assert url.startswith(f"{server.jwst}/display_result/")
    ann = Person(server.jwst, "ann", server.tokens["ann"])
    assert ann.sign_in(instrument).ok
    page = ann.get(url.removeprefix(server.jwst))
    assert (page.status_code, error_of(page)) == (200, "")
    return ann, url.rpartition("/")[2], text_of(page.text)


def confirmed(ann: Person, submission: str, context: str) -> str:
    """Confirm; return the context that the page names."""
    page = ann.button(submission, "confirm")
    assert (page.status_code, error_of(page)) == (200, "")
    named = BeautifulSoup(page.text, "html.parser").find(id=context)
    assert named and named.a, page.text
    return str(named.a.string)


@pytest.mark.slow
def test_the_programmatic_submission(crds_server: CrdsServer, stock_jwst: Client) -> None:
    with notebook(stock_jwst, crds_server, PROGRAMMATIC) as run:
        tutorial = stock_jwst.home / "crds-tutorial-cache" / "references" / "jwst" / "nircam"
        assert run.out(4) == f"{{'readnoise': '{tutorial / 'jwst_nircam_readnoise_0025.fits'}'}}\n"
        run.wait_for("cell 12 is done")
        for words in ("deliverer (str)", "jwst_etc (bool)", "change_level (str)", "CRDS - INFO -  0 errors"):
            assert words in run.text
        ann, submission, page = review(crds_server, run.opened.read_text().strip(), "nircam")
        assert "Logical Diff ('jwst_nircam_readnoise_0005.rmap', 'jwst_nircam_readnoise_0006.rmap')" in page
        added = re.search(r"^\+ +'2018-01-01 00:00:00' : '(jwst_nircam_readnoise_\d+\.fits)',$", page, re.MULTILINE)
        assert added, page
        assert re.search(r"^  +'2015-10-01 00:00:00' : 'jwst_nircam_readnoise_0025\.fits',$", page, re.MULTILINE), page
        assert not re.search(r"^-.*\.fits", page, re.MULTILINE), page
        new_context = confirmed(ann, submission, CONTEXT)
        assert new_context == "jwst_0542.pmap"
        run.stdin.write(f"{new_context}\n")
        run.stdin.flush()
        run.end()
        assert "jwst_nircam_readnoise_0025.fits" in run.out(15)
        assert added[1] in run.out(16)
        assert (tutorial / added[1]).read_bytes() == (stock_jwst.home / "jwst_nircam_readnoise_new.fits").read_bytes()


@pytest.mark.slow
def test_the_submission_of_developers(crds_server: CrdsServer, stock_jwst: Client) -> None:
    with notebook(stock_jwst, crds_server, DEVELOPERS) as run:
        run.end()
        for line in (f"CRDS_SERVER_URL = '{crds_server.jwst}'", f"Effective Context = '{CONTEXT}'", "CRDSUNIQ"):
            assert line in run.text, run.text
        shown = re.search(r"SubmissionResult\(error_count=0, warning_count=\d+, ready_url='([^']+)'\)", run.out(7))
        assert shown, run.text
        ann, submission, page = review(crds_server, shown[1], "miri")
        replaced = re.search(r"^- .*'jwst_miri_dark_0057\.fits',$", page, re.MULTILINE)
        new = re.search(r"^\+ .*'(jwst_miri_dark_\d+\.fits)',$", page, re.MULTILINE)
        assert replaced and new, page
        new_context = confirmed(ann, submission, CONTEXT)
        assert ann.call("get_default_context", "jwst", "edit")["result"] == new_context
        assert new[1] in ann.call("get_reference_names", new_context)["result"]
