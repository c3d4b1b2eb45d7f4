"""The stock client as it looks for affected datasets, with a file of headers in place of its server.

Usage: python -m tests.fakes.client CACHE HEADERS.json RESULT.json OLD,NEW [OLD,NEW ...]

``crds bestrefs --affected-datasets`` runs as it is for each pair, but for what it would ask a server: the ids and
headers of datasets.  Each header is evaluated once per context, by crds, for all types, however many pairs there are.
The result holds for each pair the reasons, the failures, the names that the command printed, and what it dropped.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the client."""
    cache, headers_file, result_file, *pairs = sys.argv[1:]
    for name in [name for name in os.environ if name.startswith("CRDS_")]:
        del os.environ[name]
    os.environ |= {"CRDS_PATH": cache, "CRDS_OBSERVATORY": "hst", "CRDS_READONLY_CACHE": "1", "CRDS_VERBOSITY": "-3"}
    headers: dict[str, dict[str, str]] = json.loads(Path(headers_file).read_text())
    found = {}
    chosen: dict[tuple[str, str], dict[str, str]] = {}
    for pair in pairs:
        old, _, new = pair.partition(",")
        found[pair] = look(headers, old, new, chosen)
    Path(result_file).write_text(json.dumps(found))


def look(
    headers: dict[str, dict[str, str]], old: str, new: str, chosen: dict[tuple[str, str], dict[str, str]]
) -> dict[str, Any]:
    """Look for the datasets that a change of contexts affects."""
    import crds
    from crds.bestrefs import bestrefs
    from crds.client import api
    from crds.core import utils

    by_instrument: dict[str, list[str]] = {}
    for one, header in headers.items():
        by_instrument.setdefault(header["INSTRUME"].lower(), []).append(one)
    current = [""]

    class Script(bestrefs.BestrefsScript):
        failures: dict[str, list[list[str]]]

        def require_server_connection(self) -> None:
            pass

        def process(self, dataset: str) -> None:
            current[0] = dataset
            super().process(dataset)

        def log_and_track_error(self, dataset: str, *words: Any, **keys: Any) -> None:
            if words[2] in ("Old:", "New:"):
                text = " ".join(str(word) for word in words[3:])
                self.failures.setdefault(dataset, []).append([words[1], words[2].strip(":").lower(), text])

    def recommend(header: dict[str, str], reftypes: list[str], context: str, **_: Any) -> dict[str, str]:
        key = (context, current[0])
        if key not in chosen:
            pmap = crds.get_cached_mapping(context)
            chosen[key] = pmap.get_best_references(pmap.minimize_header(utils.condition_header(header)))
        return {kind: name for kind, name in chosen[key].items() if kind in reftypes}

    def segment(context: str, ids: list[str]) -> dict[str, dict[str, str]]:
        return {one: headers[one] for one in ids}

    api.get_dataset_ids = lambda context, instrument, since=None: by_instrument.get(instrument.lower(), [])
    api.get_dataset_headers_by_id = segment
    crds.getrecommendations = recommend
    remember_differences()
    script = Script(f"crds.bestrefs --affected-datasets --old-context {old} --new-context {new}")
    script.failures = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        script()
    return {
        "types": {name: sorted(kinds) for name, kinds in (script.affected_instruments or {}).items()},
        "updates": {
            one: [[update.filekind, update.old_reference.lower(), update.new_reference.lower()] for update in updates]
            for one, updates in script.unkilled_updates.items()
        },
        "withheld": sum(bool(updates) and one in script.kill_list for one, updates in script.updates.items()),
        "failures": script.failures,
        "printed": printed.getvalue().split(),
        "looked_at": script.get_stat("datasets") if script.affected_instruments else 0,
    }


def remember_differences() -> None:
    """Let what two contexts differ in be found once, not three times for each look."""
    from crds import diff

    find = diff.MappingDifferencer.mapping_diffs
    if not hasattr(find, "__wrapped__"):
        known: dict[tuple[str, str], Any] = {}

        @functools.wraps(find)
        def remembered(self: Any) -> Any:
            pair = (self.old_file, self.new_file)
            if pair not in known:
                known[pair] = find(self)
            return known[pair]

        diff.MappingDifferencer.mapping_diffs = remembered


if __name__ == "__main__":
    main()
