"""CRDS rules and cache configuration that select the stand-in references.

Three layers, as CRDS has them: the pipeline mapping chooses the instrument mapping, that one chooses a
reference mapping for each reference type, and this one chooses the file by parameters of the exposure.
Each carries the SHA-1 of its own text without the line of the checksum; the crds client verifies it.
"""

from __future__ import annotations

import hashlib
import pprint
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from caldp.simulate.fitsfile import write_text

CONTEXT = "hst_0001.pmap"
INSTRUMENT_MAPPING = "hst_cos_0001.imap"
USE_AFTER = "1996-10-01 00:00:00"
SERVERLESS = "https://hst-serverless-mode.stsci.edu"

_DETECTOR = ("DETECTOR",)
_SETTING = ("DETECTOR", "OBSTYPE", "LIFE_ADJ")
_MODE = ("DETECTOR", "OBSMODE")
_SPECTROSCOPIC = '(OBSTYPE == "SPECTROSCOPIC")'

VALUES = {
    "DETECTOR": "FUV",
    "OBSTYPE": "SPECTROSCOPIC",
    "OBSMODE": "TIME-TAG",
    "EXPTYPE": "EXTERNAL/SCI",
    "OPT_ELEM": "G140L",
    "LIFE_ADJ": "3.0",
    "CENWAVE": "1105.0",
}
"""Parameters of the simulated exposure as rules spell them: numbers as floating point text."""


@dataclass(frozen=True)
class Rule:
    """How one type of reference is chosen.

    Attributes
    ----------
    kind : str
        Header keyword of the reference, upper case.
    suffix : str
        Last part of the file name.
    parameters : tuple of str
        Header keywords matched before the date.
    relevance : str
        Expression over header keywords; where false the answer is N/A.
    image : bool
        Whether the reference is an image rather than a table.
    """

    kind: str
    suffix: str
    parameters: tuple[str, ...]
    relevance: str = "ALWAYS"
    image: bool = False

    @property
    def switch(self) -> str:
        """Calibration switch that the relevance depends on; the client reads it only if it is named here."""
        found = re.search(r"\b[A-Z]+CORR\b", self.relevance)
        return found.group() if found else "NONE"

    @property
    def reference(self) -> str:
        """Name of the stand-in file."""
        return f"sim00001l_{self.suffix}.fits"

    @property
    def mapping(self) -> str:
        """Name of the reference mapping."""
        return f"hst_cos_{self.kind.lower()}_0001.rmap"


RULES = (
    Rule("BPIXTAB", "bpix", _DETECTOR),
    Rule("BRFTAB", "brf", _DETECTOR, '(DETECTOR == "FUV")'),
    Rule("DEADTAB", "dead", _DETECTOR, '(DEADCORR != "OMIT")'),
    Rule("DISPTAB", "disp", _SETTING, _SPECTROSCOPIC),
    Rule("FLATFILE", "flat", ("DETECTOR", "OPT_ELEM", "LIFE_ADJ"), '(FLATCORR != "OMIT")', image=True),
    Rule("FLUXTAB", "phot", _SETTING, '((OBSTYPE == "SPECTROSCOPIC") and (FLUXCORR != "OMIT"))'),
    Rule("GEOFILE", "geo", _DETECTOR, '(DETECTOR == "FUV")', image=True),
    Rule("GSAGTAB", "gsag", ("DETECTOR", "CENWAVE"), '(DETECTOR == "FUV")'),
    Rule("LAMPTAB", "lamp", _SETTING, _SPECTROSCOPIC),
    Rule("PHATAB", "pha", _DETECTOR, '(DETECTOR == "FUV")'),
    Rule("PROFTAB", "profile", _SETTING, '(ALGNCORR != "OMIT")'),
    Rule("SPOTTAB", "spot", _DETECTOR),
    Rule("SPWCSTAB", "spwcs", ("DETECTOR", "OBSTYPE", "EXPTYPE"), _SPECTROSCOPIC),
    Rule("TDSTAB", "tds", ("DETECTOR", "OBSTYPE", "CENWAVE"), '(TDSCORR != "OMIT")'),
    Rule("TRACETAB", "trace", _SETTING, '(TRCECORR != "OMIT")'),
    Rule("TWOZXTAB", "2zx", _SETTING, '(ALGNCORR != "OMIT")'),
    Rule("WCPTAB", "wcp", _SETTING, _SPECTROSCOPIC),
    Rule("XTRACTAB", "1dx", _SETTING, _SPECTROSCOPIC),
    Rule("XWLKFILE", "xwalk", _MODE, '(XWLKCORR != "OMIT")', image=True),
    Rule("YWLKFILE", "ywalk", _MODE, '(YWLKCORR != "OMIT")', image=True),
)

NOT_APPLICABLE = ("BADTTAB", "BRSTTAB", "DGEOFILE", "HVTAB")
"""Reference types that COS has and this exposure does not use; the rules answer N/A."""


def reference_name(kind: str) -> str:
    """File name of the stand-in for header keyword `kind`; KeyError if there is none."""
    return {rule.kind: rule.reference for rule in RULES}[kind]


def sha1_of_mapping(text: str) -> str:
    """SHA-1 of the text of a mapping without the line that states it, as CRDS computes it."""
    kept = [line for line in text.splitlines(keepends=True) if "sha1sum" not in line]
    return hashlib.sha1("".join(kept).encode("utf-8"), usedforsecurity=False).hexdigest()


def with_checksum(text: str) -> str:
    """The text of a mapping with its checksum put in."""
    return re.sub(r"'sha1sum' : '[^']*'", f"'sha1sum' : '{sha1_of_mapping(text)}'", text, count=1)


def _header(fields: dict[str, object]) -> str:
    """Header block of a mapping, keys in order, checksum still empty."""
    fields = {**fields, "observatory": "HST", "sha1sum": ""}
    rows = "".join(f"    {key!r} : {fields[key]!r},\n" for key in sorted(fields))
    return f"header = {{\n{rows}}}\n\n"


def _selector(entries: dict[str, str]) -> str:
    """Selector block of a mapping that chooses other mappings."""
    rows = "".join(f"    {key!r} : {entries[key]!r},\n" for key in sorted(entries))
    return f"selector = {{\n{rows}}}\n"


def reference_mapping(rule: Rule) -> str:
    """Text of the mapping (rmap) of one reference type."""
    header = _header(
        {
            "derived_from": "simulated",
            "filekind": rule.kind,
            "instrument": "COS",
            "mapping": "REFERENCE",
            "name": rule.mapping,
            "parkey": (rule.parameters, ("DATE-OBS", "TIME-OBS")),
            "reffile_format": "IMAGE" if rule.image else "TABLE",
            "reffile_required": "NONE",
            "reffile_switch": rule.switch,
            "rmap_relevance": rule.relevance,
            **({"extra_keys": ("EXPTYPE",)} if "EXPTYPE" in rule.parameters else {}),
        }
    )
    match = tuple(VALUES[name] for name in rule.parameters)
    selector = (
        f"selector = Match({{\n    {match!r} : UseAfter({{\n"
        f"        {USE_AFTER!r} : {rule.reference!r},\n    }}),\n}})\n"
    )
    return with_checksum(header + selector)


def instrument_mapping() -> str:
    """Text of the instrument mapping (imap)."""
    header = _header(
        {
            "derived_from": "simulated",
            "instrument": "COS",
            "mapping": "INSTRUMENT",
            "name": INSTRUMENT_MAPPING,
            "parkey": ("REFTYPE",),
        }
    )
    entries = {rule.kind.lower(): rule.mapping for rule in RULES} | {k.lower(): "N/A" for k in NOT_APPLICABLE}
    return with_checksum(header + _selector(entries))


def pipeline_mapping() -> str:
    """Text of the pipeline mapping (pmap)."""
    header = _header({"derived_from": "simulated", "mapping": "PIPELINE", "name": CONTEXT, "parkey": ("INSTRUME",)})
    return with_checksum(header + _selector({"COS": INSTRUMENT_MAPPING}))


def mappings() -> dict[str, str]:
    """All mappings of the context: file name to text."""
    texts = {CONTEXT: pipeline_mapping(), INSTRUMENT_MAPPING: instrument_mapping()}
    return texts | {rule.mapping: reference_mapping(rule) for rule in RULES}


def server_config() -> str:
    """Answer of a CRDS server about itself, as the client caches it: the little that it reads offline."""
    return (
        pprint.pformat(
            {
                "bad_files": "",
                "bad_files_list": [],
                "context_history": [["2020-01-01 00:00:00", CONTEXT, "simulated"]],
                "crds_version": {"str": "14.0.3"},
                "edit_context": CONTEXT,
                "force_remote_mode": 0,
                "last_refreshed": "2020-01-01 00:00:00",
                "last_synced": "2020-01-01 00:00:00",
                "mappings": sorted(mappings()),
                "observatory": "hst",
                "operational_context": CONTEXT,
                "server": SERVERLESS,
                "status": "server",
            }
        )
        + "\n"
    )


def write_rules(crds_path: Path) -> None:
    """Write configuration and mappings of a read-only, flat CRDS cache at `crds_path`."""
    config = crds_path / "config" / "hst"
    write_text(config / "server_config", server_config())
    write_text(config / "ref_cache_subdir_mode", "flat\n")
    write_text(config / "bad_files.txt", "\n")
    for name, text in mappings().items():
        write_text(crds_path / "mappings" / "hst" / name, text)


def write_config_script(path: Path, crds_path: Path) -> None:
    """Write the bash script, to be sourced, that points CRDS clients at the cache `crds_path`."""
    settings = {
        "CRDS_PATH": str(crds_path),
        "CRDS_CONTEXT": CONTEXT,
        "CRDS_OBSERVATORY": "hst",
        "CRDS_SERVER_URL": SERVERLESS,
        "CRDS_READONLY_CACHE": "1",
    }
    lines = ["# CRDS settings of a simulated data set.  To be sourced by bash."]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    write_text(path, "\n".join(lines) + "\n")
