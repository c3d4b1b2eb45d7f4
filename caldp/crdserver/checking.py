"""Does a CRDS do what its clients expect? Asked of it from outside, with what a client would ask."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from caldp.crdserver.journal import now
from caldp.crdserver.site import Site
from caldp.errors import ReferencesError

#: Seconds that one answer may take.
_PATIENCE = 60.0

#: Files of the default context that are fetched and compared.
_SAMPLE = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was asked.

    Attributes
    ----------
    what : str
        What.
    ok : bool
        Whether the answer was as it should be.
    said : str
        The answer, or what is wrong with it.
    seconds : float
        How long it took.
    """

    what: str
    ok: bool
    said: str
    seconds: float


class Checker:
    """Asks one CRDS.

    Parameters
    ----------
    url : str
        What clients call it, with its observatory: ``http://localhost:8001/hst``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.observatory = self.url.rpartition("/")[2]
        self.findings: list[Finding] = []

    def run(self) -> list[Finding]:
        """Ask all, and return what was found."""
        info: dict[str, Any] = {}
        with self._asking("server info") as say:
            info = self._call("get_server_info")
            say(f"{len(info['mappings'])} mappings, default context {info['latest_context']}")
        context = info.get("latest_context", "")
        names: list[str] = []
        with self._asking("mappings of the default context") as say:
            names = self._call("get_mapping_names", context)
            _must(names[:1] == [context], f"{names[:1]} comes first, not {context}")
            say(f"{len(names)}")
        with self._asking("downloads") as say:
            known = self._call("get_file_info_map", self.observatory, names[:_SAMPLE], ["size", "sha1sum"])
            for name, one in known.items():
                data = self._get(f"/get/{name}")
                said = (str(len(data)), hashlib.sha1(data).hexdigest())  # noqa: S324 - what CRDS has chosen
                _must(said == (one["size"], one["sha1sum"]), f"{name} has {said}, not {one}")
            say(f"{len(known)} files are what the catalogue says")
        with self._asking("history") as say:
            history = self._call("get_context_history", self.observatory)
            _must(all(len(row) == 3 for row in history), "a row has not three fields")
            say(f"{len(history)} default contexts")
        with self._asking("errors") as say:
            reply = self._reply("get_mapping_names", f"{self.observatory}_99999.pmap")
            _must(bool(reply["error"]), "an unknown context is no error")
            say(reply["error"]["message"])
        with self._asking("form of submissions") as say:
            _must(b"deliverer" in self._get("/submission_form/redcat_description.yml"), "it has no deliverer")
            say("there")
        with self._asking("nobody uploads unknown") as say:
            _must(b'id="error_message"' in self._get("/upload/list/"), "it lists files to strangers")
            say("refused")
        return self.findings

    @contextmanager
    def _asking(self, what: str) -> Iterator[Callable[[str], None]]:
        said = [""]
        started = time.monotonic()
        try:
            yield lambda text: said.__setitem__(0, text)
            ok = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            ok, said[0] = False, f"{type(error).__name__}: {error}"[:300]
        self.findings.append(Finding(what, ok, said[0], round(time.monotonic() - started, 2)))

    def _call(self, method: str, *params: Any) -> Any:  # noqa: ANN401 - as JSON has it
        reply = self._reply(method, *params)
        _must(not reply["error"], str(reply["error"]))
        return reply["result"]

    def _reply(self, method: str, *params: Any) -> dict[str, Any]:  # noqa: ANN401 - as JSON has it
        call = {"jsonrpc": "1.0", "method": method, "params": params, "id": "check"}
        return dict(json.loads(self._get(f"/json/{method}/check/", json.dumps(call).encode())))

    def _get(self, path: str, body: bytes | None = None) -> bytes:
        url = self.url + path
        if not url.startswith(("http://", "https://")):
            raise ReferencesError(f"{self.url} is no address of a server", remedy="give http://host:port/hst")
        with urllib.request.urlopen(url, body, timeout=_PATIENCE) as reply:  # noqa: S310 - see above
            return bytes(reply.read())


def check(site: Site) -> list[Finding]:
    """Ask a CRDS that is served, and keep what was found.

    Parameters
    ----------
    site : Site
        Whose address is known.

    Returns
    -------
    list of Finding
    """
    found = Checker(site.url).run()
    value = {"at": now(), "findings": [asdict(one) for one in found]}
    site.records.put(f"{site.observatory}:checks", "newest", value)
    return found


def _must(so: bool, otherwise: str) -> None:
    if not so:
        raise ValueError(otherwise)
