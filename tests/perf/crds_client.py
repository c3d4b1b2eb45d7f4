"""Commands of the stock client against a CRDS of ours: what they came to and how long they took. Prints a table.

Usage: python tests/perf/crds_client.py            (needs the shared HST data; about three minutes)

The whole process is timed, import of crds and all; each command has the cache that the one before has left.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.crds import (
    FORM,
    TWOZXTAB,
    Answer,
    Client,
    CrdsServer,
    fill_place,
    make_client,
    make_reference,
    setup_line,
    signed_in,
)
from tests.desk import CONTEXT, DATA, SCRIPTS, unpacked

RAW = "ldfd01vnq_rawtag_a.fits"

#: What 0600 chooses for that exposure is here.
GETREFERENCES = f"""
import crds
from crds import data_file
header = data_file.get_unconditioned_header("{RAW}", observatory="hst")
print(crds.getreferences(header, reftypes=["twozxtab", "xtractab"], context="hst_0600.pmap", observatory="hst"))
"""

SUBMISSION = """
import json, sys
{setup}
from crds.submit import Submission
submission = Submission("hst", "bit")
for key, value in json.loads(sys.argv[1]).items():
    submission[key] = value
submission.add_file("new_1dx.fits")
submission._auto_confirm = True
print(submission.submit().error_count, submission.file_map)
"""


def commands(client: Client, server: CrdsServer) -> Iterator[tuple[str, Answer, int]]:
    """Run the commands; yield each, its answer and the exit status that is right."""

    def run(line: str, code: int = 0, **env: str) -> tuple[str, Answer, int]:
        words = " ".join([*(f"{name}={value}" for name, value in env.items()), "crds", line])
        return words, client(*line.split(), env=env), code

    yield run("list --status")
    yield run("list --contexts hst-latest hst-edit hst-2018-01-01T00:00:00 --resolve-contexts")
    yield run(f"sync --contexts {CONTEXT}")
    yield run(f"sync --contexts {CONTEXT} --check-files --check-sha1sum")
    yield run(f"sync --files {TWOZXTAB}")
    yield run(f"list --cat {TWOZXTAB}")
    for mode in ("local", "remote", "auto"):
        yield run(f"bestrefs --files {RAW} --new-context {CONTEXT} --update-bestrefs", CRDS_MODE=mode)
    yield run(f"bestrefs --files {RAW} --old-context hst_0650.pmap --new-context {CONTEXT} --print-affected-details")
    yield "crds.getreferences (two files)", client.script(GETREFERENCES), 0
    yield run(f"certify new_1dx.fits --comparison-context {CONTEXT}")
    old = next((client.cache / "mappings" / "hst").glob("hst_cos_xtractab_0260.rmap"))
    shutil.copyfile(old, client.home / old.name)
    yield run(f"refactor insert ./{old.name} ./hst_cos_xtractab_0261.rmap ./new_1dx.fits")
    yield run(f"diff ./{old.name} ./hst_cos_xtractab_0261.rmap", 1)
    yield run("checksum ./hst_cos_xtractab_0261.rmap")
    yield run(f"newcontext {CONTEXT} ./hst_cos_xtractab_0261.rmap")
    yield run("uniqname --files new_1dx.fits --standard")
    yield run(f"matches --files 24914347l_lamp.fits --contexts {CONTEXT}")
    yield run("uses --files 24914347l_lamp.fits")
    yield run("sync --contexts hst_0728.pmap")
    yield run("diff crds://hst_0728.pmap crds://hst_0729.pmap", 1)
    yield run("sql --update-db")
    yield "crds sql 'select count(*) ...'", client("sql", "select count(*) from crds_hst_catalog"), 0
    yield run(f"check_archive --files {TWOZXTAB} {CONTEXT}")
    (client.home / "submit.py").write_text(SUBMISSION.format(setup=setup_line()))
    said = json.dumps({**FORM, "instrument": "cos"})
    answer = client.run("submit.py", said, env=signed_in(server, "ann"))
    yield "Submission.submit, confirmed by itself", answer, 0
    answer = client("submit", "--logout", "--files", "new_1dx.fits", env=signed_in(server, "ann"))
    yield "crds submit --logout --files new_1dx.fits", answer, 0


def main() -> None:
    """Fill a CRDS, serve it, run the commands, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill_place(home, DATA)
        server = CrdsServer(home / "store", json.loads((home / "tokens.json").read_text()), home / "server.log").start()
        try:
            environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
            client = make_client(home / "client", server.hst, environment)
            unpacked(DATA / "cos-ldfd01010" / "inputs" / f"{RAW}.gz", client.home / RAW)
            make_reference(client.home / "new_1dx.fits", USEAFTER="Jan 01 2018 00:00:00")
            cores = os.cpu_count()
            print(
                f"Python {platform.python_version()}, {cores} cores, load {os.getloadavg()[0]:.1f} at the beginning\n"
            )
            print(f"{'command':92} {'exit':>4} {'as it should':>12} {'seconds':>8}")
            for command, answer, code in commands(client, server):
                right = "yes" if answer.code == code and "Traceback" not in answer.output else "NO"
                print(f"{command[:92]:92} {answer.code:4d} {right:>12} {answer.seconds:8.1f}", flush=True)
                if right == "NO":
                    print(answer.output[-2000:])
        finally:
            server.stop()


if __name__ == "__main__":
    main()
