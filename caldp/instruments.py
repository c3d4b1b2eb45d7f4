"""The recipe of each instrument and kind of dataset, as rows of data.

A row says which files are inputs, which programs calibrate them and in which order, what their exit statuses and
messages mean, what is kept, and what gets a preview.  What the programs make of their input is in ``expectations``.
Adding an instrument is adding a row (and at most one function there).  How the programs behave is from their sources
and from runs of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from caldp import expectations
from caldp.dataset import Dataset
from caldp.errors import CaldpError, MvmError, Stage1Error, Stage2Error, SvmError
from caldp.expectations import Header, Made, Material


def _always(_: Material) -> bool:
    return True


def _nothing(_: Material) -> tuple[Made, ...]:
    return ()


def _none(_: Header) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Program:
    """One program of a recipe, and how to tell what it did.

    Attributes
    ----------
    argv : tuple of str
        Command; ``{input}`` is the file of a call, ``{output}`` the folder for products.
    remedy : str
        What to do where it is not installed.
    call : str
        What one call is given: ``dataset`` (the association, else the exposure's first raw file), ``raw`` (each raw
        file, one call after the other) or ``poller`` (the absolute path of the list of exposures).
    error : type
        What its failure is.
    makes : callable
        From what it is given to the (root, suffix) of the products that must exist afterwards.
    applies : callable
        Whether the headers ask for it.
    made_from : tuple of str
        Suffixes of calibrated files, one of which must be there before, and one of which its products' headers must
        name as their source.
    manifest : str
        The file in which it lists its products; they must all exist.
    tolerated : tuple of int
        Exit statuses that mean "nothing to calibrate here" when no product is expected.
    nothing_viable : mapping
        Exit statuses that mean that none of the data can be used, and why: the dataset is processed, without products.
    said_nothing_to_do : tuple of str
        Regular expressions in its output that mean the same of an exit status 0.
    said_failure : tuple of (str, str)
        Regular expressions in its output that mean failure whatever the exit status, and why.
    out_of_memory : tuple of str
        Regular expressions in the output when it failed that mean it had too little memory.
    astrometry : bool
        It asks MAST's astrometry service, unless told not to.
    trailer : bool
        A trailer is delivered even where it found nothing to do, and so wrote none.
    """

    argv: tuple[str, ...]
    remedy: str
    call: Literal["dataset", "raw", "poller"] = "dataset"
    error: type[CaldpError] = Stage1Error
    makes: Callable[[Material], tuple[Made, ...]] = _nothing
    applies: Callable[[Material], bool] = _always
    made_from: tuple[str, ...] = ()
    manifest: str = ""
    tolerated: tuple[int, ...] = ()
    nothing_viable: Mapping[int, str] = field(default_factory=dict)
    said_nothing_to_do: tuple[str, ...] = ()
    said_failure: tuple[tuple[str, str], ...] = ()
    out_of_memory: tuple[str, ...] = ()
    astrometry: bool = False
    trailer: bool = False

    @property
    def name(self) -> str:
        """Name of the program."""
        return self.argv[0]


@dataclass(frozen=True)
class Instrument:
    """How one instrument, or one kind of mosaic, is calibrated.

    Attributes
    ----------
    name : str
        As in ``Dataset.instrument``, or the kind of a mosaic.
    instruments : tuple of str
        Whose data they may be.
    programs : tuple of Program
        In the order in which they run.
    raw : tuple of str
        Suffixes of raw science data: what the programs work on.
    instead : tuple of str
        Suffixes of what they work on where there are no such files.
    support : tuple of str
        Suffixes of files that go with them.
    referenced : tuple of str
        Suffixes of support files that get best references too.
    member_files : bool
        The exposures of an association have files of their own; else these bear the name of the association.
    companions : callable
        From the facts of a raw file to the names of support files that must be there.
    facts : tuple of str
        Header keywords that decide what an exposure yields.
    numbers : tuple of str
        Those that must be whole numbers.
    reference_variable : str
        Environment variable in the names of references, as in ``lref$x_flat.fits``; empty where none are assigned.
    late_references : tuple of str
        Reference keywords that programs want and that CRDS rules may not know: a user may give one all the same.
    read_by : mapping
        Reference keyword -> the calibration steps that read it.  CRDS names these whatever the headers ask for; where
        no such step is PERFORM the file need not be there.
    kept : tuple of str
        Regular expressions of the names that are delivered, with the placeholders ``{dataset}``, ``{root}`` and
        ``{roots}`` (of the dataset, its members and products).
    dropped : tuple of str
        Regular expressions of the names that are not, although they match.
    spectra, images : tuple of str
        Suffixes of delivered files that get a preview of that kind.
    images_of_spectra : bool
        Images of dispersed light get a preview too; else only the extracted spectrum does.
    thumbnail : int
        Longest side of images' thumbnails, in pixels.
    composites : bool
        The products of several filters get a preview in colour.
    random_seed : int or None
        Value for the header keyword RANDSEED, so that runs are reproducible.
    mast_suffixes : tuple of str
        Suffixes of the files to download, in upper case; those of a mosaic are named by its list of exposures.
    """

    name: str
    instruments: tuple[str, ...]
    programs: tuple[Program, ...]
    raw: tuple[str, ...]
    facts: tuple[str, ...]
    mast_suffixes: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    support: tuple[str, ...] = ()
    referenced: tuple[str, ...] = ()
    member_files: bool = True
    companions: Callable[[Header], tuple[str, ...]] = _none
    numbers: tuple[str, ...] = ()
    reference_variable: str = ""
    late_references: tuple[str, ...] = ()
    read_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kept: tuple[str, ...] = (r"({roots})(_\w+\.fits|\.tra)",)
    dropped: tuple[str, ...] = ()
    spectra: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    images_of_spectra: bool = True
    thumbnail: int = 128
    composites: bool = False
    random_seed: int | None = None

    @property
    def label(self) -> str:
        """How it is calibrated, in a word: its programs, for example ``calacs.e+runastrodriz``."""
        return "+".join(program.name for program in self.programs)


_PYTHON_MEMORY = (r"\bMemoryError\b", r"Unable to allocate .* for an array")

#: HSTCAL ends with 2 then, as after any failure, and says so in many words.
_HSTCAL_MEMORY = (
    r"No memory left to allocate",
    r"(?i)\bout of memory\b",
    r"(?i)(couldn't|can't|cannot|could not|unable to) allocate",
    r"(?i)insufficient memory",
)

_HSTCAL = "install HSTCAL (conda install -c conda-forge hstcal, or scripts/caldp-install-cal); see caldp doctor"

_DRIZZLEPAC = "pip install drizzlepac 'photutils<3'; see caldp doctor"

_NOTHING_PERFORMED = (r"No calibration switch was set to PERFORM", r"did NOT process")

#: What calacs.e, calwf3.e and cs0.e have in common.
_HSTCAL_PROGRAM = Program(
    argv=("", "{input}"), remedy=_HSTCAL, said_nothing_to_do=_NOTHING_PERFORMED, out_of_memory=_HSTCAL_MEMORY
)

_RUNASTRODRIZ = Program(
    argv=("runastrodriz", "-n", "1", "{input}"),
    remedy=_DRIZZLEPAC,
    error=Stage2Error,
    applies=expectations.is_drizzled,
    makes=expectations.runastrodriz,
    # Without a calibrated file it drizzles the raw one, and says 0.
    made_from=("flt", "flc", "crj", "crc"),
    said_nothing_to_do=(r"astrodrizzle processing not requested",),
    out_of_memory=_PYTHON_MEMORY,
    astrometry=True,
)

#: Exit statuses of runsinglehap and runmultihap (haputils/analyze.py) that say that there is nothing to make.
_NOTHING_VIABLE = {
    55: "there are only SBC or HRC data, of which none is made",
    65: "none of the exposures can be used",
}

#: The distortion that drizzlepac reads is in NPOLFILE and D2IMFILE: nothing reads DGEOFILE.
_DIRECT_READ_BY: dict[str, tuple[str, ...]] = {"DGEOFILE": ()}

#: From sciflags.c of STIS.
_STIS_READ_BY = {
    "APERTAB": ("PHOTCORR", "FLUXCORR"),
    "CRREJTAB": ("CRCORR", "RPTCORR"),
    "GACTAB": ("FLUXCORR",),
    "IDCTAB": ("GEOCORR",),
    "IMPHTTAB": ("PHOTCORR",),
    "PCTAB": ("FLUXCORR",),
    "PHOTTAB": ("FLUXCORR",),
    "TDSTAB": ("PHOTCORR", "FLUXCORR"),
}

#: What runsinglehap and runmultihap have in common.
_HAP_PROGRAM = Program(
    argv=("", "{input}"),
    remedy=_DRIZZLEPAC,
    call="poller",
    manifest="{dataset}_manifest.txt",
    nothing_viable=_NOTHING_VIABLE,
    out_of_memory=_PYTHON_MEMORY,
    astrometry=True,
)

_IPPPSSOOT_FACTS = ("INSTRUME", "ROOTNAME", "DETECTOR", "OBSTYPE", "EXPTYPE")

_ROWS = (
    Instrument(
        name="acs",
        instruments=("acs",),
        programs=(
            replace(_HSTCAL_PROGRAM, argv=("calacs.e", "{input}"), makes=expectations.calacs, trailer=True),
            _RUNASTRODRIZ,
        ),
        raw=("raw",),
        support=("spt",),
        facts=(*_IPPPSSOOT_FACTS, *expectations.DIRECT_STEPS),
        reference_variable="jref",
        late_references=("SATUFILE",),
        read_by=_DIRECT_READ_BY,
        images=("raw", "flt", "flc", "crj", "drz", "drc"),
        mast_suffixes=("ASN", "RAW"),
    ),
    Instrument(
        name="wfc3",
        instruments=("wfc3",),
        programs=(
            replace(_HSTCAL_PROGRAM, argv=("calwf3.e", "{input}"), makes=expectations.calwf3, trailer=True),
            _RUNASTRODRIZ,
        ),
        raw=("raw",),
        support=("spt",),
        facts=(*_IPPPSSOOT_FACTS, *expectations.DIRECT_STEPS),
        reference_variable="iref",
        late_references=("SATUFILE",),
        read_by=_DIRECT_READ_BY,
        images=("raw", "flt", "flc", "crj", "ima", "drz", "drc"),
        mast_suffixes=("ASN", "RAW"),
    ),
    Instrument(
        name="cos",
        instruments=("cos",),
        programs=(
            Program(
                argv=("calcos", "-o", "{output}", "{input}"),
                remedy="pip install calcos, or put it on PATH; see caldp doctor",
                makes=expectations.calcos,
                tolerated=(5,),
                said_failure=(
                    (r"No data in (?!lampflash)", "a table of events is empty"),
                    (r"There are no files to calibrate", "raw data of a member were not found"),
                ),
                out_of_memory=_PYTHON_MEMORY,
            ),
        ),
        raw=(
            "rawtag",
            "rawtag_a",
            "rawtag_b",
            "rawaccum",
            "rawaccum_a",
            "rawaccum_b",
            "rawimage",
            "rawacq",
        ),
        support=("spt", "pha_a", "pha_b"),
        facts=(
            *_IPPPSSOOT_FACTS,
            "OBSMODE",
            "SEGMENT",
            "FPPOS",
            "TAGFLASH",
            "NUMFLASH",
            *expectations.COS_STEPS,
        ),
        numbers=("FPPOS", "NUMFLASH"),
        reference_variable="lref",
        spectra=("x1d", "x1dsum", "x1dsum1", "x1dsum2", "x1dsum3", "x1dsum4"),
        images=("counts", "flt", "fltsum"),
        # The two-dimensional image of a spectrum says little that its extracted spectrum does not.
        images_of_spectra=False,
        random_seed=1,
        mast_suffixes=(
            *("ASN", "RAW", "EPC", "SPT", "RAWACCUM", "RAWACCUM_A", "RAWACCUM_B"),
            *("RAWACQ", "RAWIMAGE", "RAWTAG", "RAWTAG_A", "RAWTAG_B", "PHA_A", "PHA_B"),
        ),
    ),
    Instrument(
        name="stis",
        instruments=("stis",),
        programs=(
            # Of two names it takes the second for that of its output, and says 0.
            replace(_HSTCAL_PROGRAM, argv=("cs0.e", "-tv", "{input}"), makes=expectations.cs0, call="raw"),
        ),
        raw=("raw",),
        instead=("wav",),
        support=("wav", "tag", "epc", "spt"),
        referenced=("wav", "tag"),
        member_files=False,
        companions=expectations.stis_companions,
        facts=(*_IPPPSSOOT_FACTS, "OBSMODE", "NEXTEND", "WAVECAL", *expectations.STIS_STEPS),
        numbers=("NEXTEND",),
        reference_variable="oref",
        read_by=_STIS_READ_BY,
        dropped=(r".*_epc\.fits",),
        spectra=("x1d", "sx1"),
        images=("flt", "crj", "sx2", "x2d"),
        images_of_spectra=False,
        mast_suffixes=("ASN", "RAW", "EPC", "TAG", "WAV"),
    ),
    Instrument(
        name="svm",
        instruments=("acs", "wfc3"),
        programs=(replace(_HAP_PROGRAM, argv=("runsinglehap", "{input}"), error=SvmError),),
        raw=("flc", "flt"),
        facts=_IPPPSSOOT_FACTS,
        kept=(r"hst_[-\w]+_{root}[-\w]*\.(fits|txt|ecsv)", r"{dataset}_manifest\.txt", r"astrodrizzle\.log"),
        dropped=(r".*_ref_cat\.ecsv",),
        images=("drz", "drc"),
        composites=True,
    ),
    Instrument(
        name="mvm",
        instruments=("acs", "wfc3"),
        programs=(replace(_HAP_PROGRAM, argv=("runmultihap", "{input}"), error=MvmError),),
        raw=("flc", "flt"),
        facts=_IPPPSSOOT_FACTS,
        kept=(r"hst_{dataset}[-\w]*\.(fits|txt)", r"{dataset}_manifest\.txt"),
        images=("drz", "drc"),
        thumbnail=512,
        composites=True,
    ),
)

INSTRUMENTS: dict[str, Instrument] = {row.name: row for row in _ROWS}


def recipe(dataset: Dataset) -> Instrument:
    """Return the row that calibrates a dataset.

    Parameters
    ----------
    dataset : Dataset
        What is to be calibrated.

    Returns
    -------
    Instrument
    """
    return INSTRUMENTS[dataset.instrument if dataset.kind == "ipppssoot" else dataset.kind]
