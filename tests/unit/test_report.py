"""The HTML page about one dataset."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from caldp import report
from tests.fakes.cos import write_asn

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\x1b[31m"


class Page(HTMLParser):
    """What a page refers to, holds and says."""

    void = frozenset({"meta", "link", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(inside, self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        """Return the attributes of each ``tag`` of class ``name``."""
        return [a for t, a in self.tags if t == tag and (not name or name in (a.get("class") or "").split())]


def spectrum_file(
    path: Path, *, segments: tuple[str, ...] = ("FUVA", "FUVB"), target: str = "WD0308-565", size: int = 4000
) -> None:
    """Write a COS-like spectrum: an absorption line, Lyman alpha airglow, and ends that are pure noise."""
    rng = np.random.default_rng(1)
    rows = []
    for i, _ in enumerate(segments):
        wave = np.linspace(1300.0 - 170 * i, 1460.0 - 170 * i, size)
        flux = 1e-14 * (1 - 0.8 * np.exp(-(((wave - wave.mean()) / 0.4) ** 2)))
        flux += 2e-12 * np.exp(-(((wave - 1215.67) / 1.0) ** 2))
        error = np.full(size, 5e-16)
        error[-200:] = 5e-13
        flux = flux + rng.normal(0, 1, size) * error
        weight = np.ones(size, np.float32)
        weight[:50] = 0
        flux[:50] = 1e-9  # flagged bad
        rows.append((wave, flux, error, weight))
    form = f"{size}D"
    columns = [fits.Column("SEGMENT", "4A", array=np.array(segments))]
    columns += [
        fits.Column(name, form, array=np.array([row[i] for row in rows]), unit=unit)
        for i, (name, unit) in enumerate(
            [
                ("WAVELENGTH", "angstrom"),
                ("FLUX", "erg /s /cm**2 /angstrom"),
                ("ERROR", "erg /s /cm**2 /angstrom"),
                ("DQ_WGT", ""),
            ]
        )
    ]
    primary = fits.PrimaryHDU()
    header = {"ROOTNAME": path.name[:9], "TARGNAME": target, "RA_TARG": 47.9, "DEC_TARG": -56.4}
    header |= {"INSTRUME": "COS", "DETECTOR": "FUV", "OPT_ELEM": "G130M", "CENWAVE": 1291, "APERTURE": "PSA"}
    header |= {"EXPTYPE": "EXTERNAL/SCI", "FPPOS": 3, "PROPOSID": 12345, "PR_INV_L": "Doe"}
    primary.header.update(header)
    table = fits.BinTableHDU.from_columns(columns, name="SCI")
    table.header.update({"DATE-OBS": "2017-06-30", "TIME-OBS": "05:00:08", "EXPTIME": 1116.192})
    fits.HDUList([primary, table]).writeto(path)


def picture_file(path: Path, size: tuple[int, int] = (90, 60), *, noise: bool = False) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels) if noise else Image.new("RGB", size, (20, 60, 120))
    image.save(path)


def entry(directory: Path, name: str, **more: object) -> dict[str, Any]:
    data = (directory / name).read_bytes()
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} | more


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find slips of the template that readers would only see as something missing."""
    import jinja2

    monkeypatch.setattr(jinja2, "ChainableUndefined", jinja2.StrictUndefined)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for folder in ("logs", "previews"):
        (tmp_path / folder).mkdir()
    spectrum_file(tmp_path / "ldfd01vnq_x1d.fits")
    picture_file(tmp_path / "previews/ldfd01vnq_x1d.png")
    picture_file(tmp_path / "previews/ldfd01vnq_x1d_thumb.png", (20, 20))
    (tmp_path / "previews/ldfd01vnq_x1d_prev.fits").write_bytes(b"table")
    lines = [f"2026-11-22T00:00:00.000Z INFO    ldfd01vnq calibrate calcos: step {i}" for i in range(100)]
    lines[3] = "2026-11-22T00:00:00.000Z WARNING ldfd01vnq references an old flat field"
    (tmp_path / "logs/process.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def manifest(directory: Path) -> dict[str, Any]:
    stem = "previews/ldfd01vnq_x1d"
    product = "ldfd01vnq_x1d.fits"
    return {
        "format": 1,
        "dataset": "ldfd01vnq",
        "instrument": "cos",
        "kind": "exposure",
        "attempt": 2,
        "run": "3fa91c0b77de",
        "state": "processed",
        "reason": "",
        "started": "2026-11-22T01:00:00+01:00",
        "finished": "2026-11-22T00:01:29.500Z",
        "context": "hst_0729.pmap",
        "versions": {"caldp": "0.1.0", "calcos": "3.6.2"},
        "config": {
            "name": "caldp-config-offsite",
            "sha256": "b" * 64,
            "overrides": {"FLATFILE": "/x/my flat.fits"},
        },
        "input": "file:inputs",
        "output": "file:/abs/out",
        "inputs": [{"name": "ldfd01vnq_rawtag_a.fits", "size": 12_345_678, "sha256": "c" * 64}],
        "products": [entry(directory, product)],
        "previews": [
            entry(directory, f"{stem}.png", product=product, kind="spectrum"),
            entry(directory, f"{stem}_prev.fits", product=product, kind="table"),
            entry(directory, f"{stem}_thumb.png", product=product, kind="thumbnail"),
        ],
        "references": [
            {
                "type": "FLUXTAB",
                "name": "23n1744el_phot.fits",
                "size": 43_200,
                "sha1": "d" * 40,
                "override": False,
            },
            {"type": "FLATFILE", "name": "my flat.fits", "size": 1, "sha1": "e" * 40, "override": True},
        ],
        "programs": [],
        "warnings": ["GSAGTAB is on the list of bad files"],
    }


PROGRAM = {
    "program": "calcos",
    "argv": ["/opt/bin/calcos", "-o", "out", "ldfd01vnq_rawtag_a.fits"],
    "exit_status": 0,
    "signal": None,
    "wall_s": 75.2,
    "cpu_s": 74.0,
    "peak_memory_bytes": 1_250_000_000,
}
METRICS: dict[str, Any] = {
    "dataset": "ldfd01vnq",
    "stages": [
        {
            "name": "fetch",
            "wall_s": 0.5,
            "cpu_s": 0.1,
            "peak_memory_bytes": 60e6,
            "bytes_in": 5,
            "programs": [],
        },
        {
            "name": "calibrate",
            "wall_s": 79.5,
            "cpu_s": 76.0,
            "peak_memory_bytes": 1_250_000_000,
            "programs": [PROGRAM, PROGRAM | {"exit_status": None, "signal": "SIGKILL"}],
        },
    ],
    "total": {"wall_s": 80.0, "cpu_s": 76.1, "peak_memory_bytes": 1_250_000_000},
}


def points(page: Page, view: str = "wide") -> list[tuple[float, float]]:
    """Read wavelength and flux back from the drawn spectrum."""
    svg = next(a for a in page.all("svg", "plot") if view in (a.get("class") or "").split())
    left, right, top, bottom, x0, x1, y0, y1 = (
        float(svg[f"data-{key}"] or "") for key in ("l", "r", "t", "b", "x0", "x1", "y0", "y1")
    )
    found = []
    paths = page.all("path", "clear") + page.all("path", "faint")
    for path in paths:
        for px, py in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path["d"] or ""):
            wave = x0 + (float(px) - left) / (right - left) * (x1 - x0)
            found.append((wave, y0 + (bottom - float(py)) / (bottom - top) * (y1 - y0)))
    return found


def test_page_is_self_contained(directory: Path, manifest: dict[str, Any]) -> None:
    page = Page(report.render(directory, manifest, METRICS))
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "use", "image", "video", "audio")
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data", "background"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attributes)
    for css in [*page.styles, *((a.get("style") or "") for _, a in page.tags)]:
        assert "@import" not in css
        assert "url(" not in css
    assert not re.search(r"fetch\(|XMLHttpRequest|import\s|http(?!://www\.w3\.org/2000/svg)", page.scripts[0])


def test_page_policy_lets_only_its_own_script_run(directory: Path, manifest: dict[str, Any]) -> None:
    page = Page(report.render(directory, manifest, METRICS))
    assert len(page.all("script")) == 1
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv")) or ""
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_page_holds_everything(directory: Path, manifest: dict[str, Any]) -> None:
    html = report.render(directory, manifest, METRICS)
    page = Page(html)
    for key in ("products", "previews", "references", "inputs"):
        assert all(row["name"] in page.text for row in manifest[key])
    for text in (
        *(
            "ldfd01vnq",
            "processed",
            "attempt 2",
            "COS",
            "hst_0729.pmap",
            "2026-11-22 00:01:29 UTC",
            "1 min 30 s",
        ),
        *(
            "WD0308-565",
            "1,116.192 s",
            "G130M",
            "1291",
            "PSA",
            "03ʰ 11ᵐ 36.00ˢ, −56° 24′ 00.0″",
            "12345 (Doe)",
        ),
        *(
            "calibrate",
            "1.25 GB",
            "calcos -o out",
            "exit status 0",
            "killed by SIGKILL",
            "12.3 MB",
            "override",
        ),
        *(
            "3.6.2",
            "GSAGTAB is on the list",
            "calcos: step 99",
            "an old flat field",
            "2026-11-22 00:00:00 UTC",
        ),
        "caldp-process ldfd01vnq file:inputs file:/abs/out caldp-config-offsite --context hst_0729.pmap",
        "--override 'FLATFILE=/x/my flat.fits'",
    ):
        assert text in page.text, text
    assert "step 39" not in page.text  # only the end of the log
    for digest in ("d" * 40, "c" * 64, manifest["products"][0]["sha256"]):
        assert digest in html
    assert len(page.all("img")) == 1  # the thumbnail would show the same again
    assert page.all("img")[0]["alt"] == "Preview of ldfd01vnq_x1d.fits"
    fppos = page.text.index("FP-POS")
    assert "3" in page.text[fppos : fppos + 200]


def test_spectrum(directory: Path, manifest: dict[str, Any]) -> None:
    page = Page(report.render(directory, manifest, METRICS))
    assert len(page.all("svg", "plot")) == 2
    for svg in page.all("svg", "plot"):
        assert svg["role"] == "img"
        ids = (svg["aria-labelledby"] or "").split()
        assert len(ids) == 2
        assert all(any(a.get("id") == i for t, a in page.tags if t in ("title", "desc")) for i in ids)
    assert re.search(r"from 1,132\.\d to 1,460\.0 Å, in 2 segments", page.text)
    assert "FUVA" in page.text
    assert "Lyα airglow ↑" in page.text
    # Both widths are drawn, and a point where the line gets faint is in both strokes.
    wide = [a for a in page.all("path", "clear") if len(a["d"] or "")]
    assert {a["data-name"] for a in wide} == {"FUVA", "FUVB"}


def test_spectrum_values(directory: Path) -> None:
    drawn = report._draw(directory / "ldfd01vnq_x1d.fits")
    assert drawn is not None
    assert drawn.y_label == "Flux (10⁻¹⁴ erg s⁻¹ cm⁻² Å⁻¹)"
    assert drawn.x_label == "Wavelength (Å)"
    wide = drawn.views[0]
    found: list[tuple[float, float]] = []
    for line in wide.lines:
        pairs = re.findall(r"(-?[\d.]+) (-?[\d.]+)", line.clear)
        assert 500 < len(pairs) <= report.MAX_POINTS
        for px, py in pairs:
            wave = wide.x[0] + (float(px) - wide.left) / (wide.right - wide.left) * (wide.x[1] - wide.x[0])
            flux = wide.y[0] + (wide.bottom - float(py)) / (wide.bottom - wide.top) * (wide.y[1] - wide.y[0])
            found.append((wave, flux))
    waves, fluxes = np.array(found).T
    assert waves.min() == pytest.approx(1132, abs=1)
    assert waves.max() == pytest.approx(1453, abs=3)  # the noisy end is drawn faint
    assert np.median(fluxes) == pytest.approx(1e-14, rel=0.02)
    # The absorption line survives, the axis follows the target, and the airglow runs out of the frame.
    assert fluxes[np.abs(waves - 1380) < 0.2].min() < 4e-15
    assert 1.0e-14 < wide.y[1] < 1.5e-14
    assert fluxes.max() > 2 * wide.y[1]
    assert all(line.faint for line in wide.lines)


def test_spectrum_prefers_the_sum(directory: Path, manifest: dict[str, Any]) -> None:
    spectrum_file(directory / "ldfd01010_x1dsum.fits", segments=("FUVA",), target="SUMMED")
    manifest["products"].append(entry(directory, "ldfd01010_x1dsum.fits"))
    page = Page(report.render(directory, manifest, METRICS))
    assert "Spectrum of SUMMED · COS/FUV · G130M 1291 Å · PSA" in page.text
    assert "in 1 segment, drawn from ldfd01010_x1dsum.fits" in page.text


def test_spectrum_of_orders_with_dq(tmp_path: Path) -> None:
    size, orders = 1024, 40
    wave = np.array([np.linspace(1200 + 20 * i, 1221 + 20 * i, size) for i in range(orders)])
    dq = np.zeros((orders, size), np.int16)
    dq[:, 500:520] = 16
    columns = [
        fits.Column("SPORDER", "I", array=np.arange(orders, dtype=np.int16)),
        fits.Column("NELEM", "I", array=np.full(orders, size, np.int16)),
        fits.Column("WAVELENGTH", f"{size}D", array=wave[:, ::-1], unit="Angstroms"),
        fits.Column("FLUX", f"{size}E", array=np.full((orders, size), 3.0)),
        fits.Column("DQ", f"{size}I", array=dq),
    ]
    path = tmp_path / "o12345010_x1d.fits"
    table = fits.BinTableHDU.from_columns(columns)
    fits.HDUList([fits.PrimaryHDU(), table, table.copy()]).writeto(path)
    drawn = report._draw(path)
    assert drawn is not None
    assert len(drawn.views[0].lines) == orders
    assert drawn.legend == []
    assert "First of 2 exposures" in drawn.caption
    assert drawn.views[0].lines[0].name == "order 0"
    assert sum(line.clear.count("L") for line in drawn.views[0].lines) < 7000
    assert drawn.y_label == "Flux (erg s⁻¹ cm⁻² Å⁻¹)" or "Flux" in drawn.y_label


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "no table", "nan", "all bad"])
def test_broken_spectrum(directory: Path, manifest: dict[str, Any], damage: str) -> None:
    path = directory / "ldfd01vnq_x1d.fits"
    data = path.read_bytes()
    path.unlink()
    if damage == "no table":
        fits.PrimaryHDU().writeto(path)
    elif damage in ("nan", "all bad"):
        path.write_bytes(data)
        with fits.open(path, mode="update") as hdus:
            hdus[1].data["FLUX" if damage == "nan" else "DQ_WGT"][:] = np.nan if damage == "nan" else 0
    else:
        path.write_bytes({"empty": b"", "text": b"SIMPLE? no", "truncated": data[:20_000]}[damage])
    page = Page(report.render(directory, manifest, METRICS))
    assert not page.all("svg", "plot")
    assert re.search(r"ldfd01vnq_x1d.fits (cannot be drawn: \S|holds no valid flux)", page.text)
    assert len(page.all("img")) == 1  # the preview takes its place


def test_missing_and_broken_files(directory: Path, manifest: dict[str, Any]) -> None:
    (directory / "ldfd01vnq_x1d.fits").unlink()
    (directory / "logs/process.txt").unlink()
    png = directory / "previews/ldfd01vnq_x1d.png"
    picture_file(png, noise=True)
    png.write_bytes(png.read_bytes()[:2000])
    names = ["previews/none.png", "../outside.png", "/etc/hostname", "previews/evil.png", "x" * 5000]
    (directory / "previews/evil.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    manifest["previews"] += [{"name": n, "product": f"p{i}.fits", "kind": "image"} for i, n in enumerate(names)]
    manifest["products"] += [{"name": "y" * 5000}, {"name": "../x.fits"}, {}]
    page = Page(report.render(directory, manifest, METRICS))
    assert not page.all("img")
    assert "not in the folder" in page.text
    assert "previews/ldfd01vnq_x1d.png cannot be shown" in page.text
    assert "previews/none.png cannot be read: No such file or directory" in page.text
    assert "../outside.png cannot be read: its name leads out of the folder" in page.text
    assert "previews/evil.png cannot be shown: it is no PNG" in page.text
    assert "logs/process.txt: No such file or directory" in page.text
    assert "neither a spectrum nor a preview" in page.text


def test_image_dataset(directory: Path, manifest: dict[str, Any]) -> None:
    picture_file(directory / "previews/ldfd01vlq_flt.jpg", (300, 150))
    picture_file(directory / "previews/ldfd01vlq_counts.jpg", (300, 150))
    manifest["products"] = []
    manifest["reason"] = "an acquisition image: there is no spectrum to extract"
    manifest["previews"] = [
        {"name": f"previews/ldfd01vlq_{s}.jpg", "product": f"ldfd01vlq_{s}.fits", "kind": "image", "size": 9}
        for s in ("counts", "flt")
    ]
    page = Page(report.render(directory, manifest, METRICS))
    images = page.all("img")
    assert [i["alt"] for i in images] == [f"Preview of ldfd01vlq_{s}.fits" for s in ("flt", "counts")]
    assert (images[0]["width"], images[0]["height"]) == ("300", "150")
    assert "Please note: an acquisition image" in page.text


def test_thumbnail_stands_in_for_a_missing_picture(directory: Path, manifest: dict[str, Any]) -> None:
    manifest["previews"] = [p for p in manifest["previews"] if p["kind"] == "thumbnail"]
    assert len(Page(report.render(directory, manifest, METRICS)).all("img")) == 1


def test_size_is_bounded(directory: Path, manifest: dict[str, Any]) -> None:
    manifest["previews"] = []
    for i in range(9):
        name = f"previews/p{i}.{'jpg' if i % 2 else 'png'}"
        picture_file(directory / name, (640, 640), noise=True)  # noise is what compresses worst
        manifest["previews"].append(entry(directory, name, product=f"p{i}.fits", kind="image"))
    assert sum(p["size"] for p in manifest["previews"]) > 5_000_000
    html = report.render(directory, manifest, METRICS)
    assert len(html.encode()) < 3_000_000
    page = Page(html)
    assert len(page.all("img")) == 9
    assert "reduced here" in page.text
    for image in page.all("img"):
        data = base64.b64decode((image["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            assert opened.width >= 240


def test_fair_share_fills_the_budget() -> None:
    assert report._fair_share([], 100_000) == 100_000
    assert report._fair_share([10_000, 20_000], 100_000) == 100_000
    assert report._fair_share([10_000, 900_000, 900_000], 100_000) == 45_000


def test_hostile_text_is_escaped(directory: Path, manifest: dict[str, Any]) -> None:
    spectrum_file(directory / "ldfd01010_x1dsum.fits", target="<b onclick=1>&\"'")
    (directory / "logs/process.txt").write_text(f"WARNING {HOSTILE}\n\x00{'z' * 9000}\n", encoding="utf-8")

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {f"{k}": poison(v) for k, v in value.items()} | {HOSTILE: HOSTILE}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return HOSTILE if isinstance(value, str) else value

    poisoned: Any = poison(manifest)
    poisoned["products"].append(entry(directory, "ldfd01010_x1dsum.fits"))
    metrics: Any = poison(METRICS)
    html = report.render(directory, poisoned, metrics)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert not any(i.get("onerror") or i["src"] == "x" for i in page.all("img"))
    assert all("alert" not in s for s in page.scripts)
    assert "\x1b" not in html
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", html, re.S)[0]
    assert "<b onclick=1>&\"'" in page.text
    assert "z" * 2000 not in html


@pytest.mark.parametrize("manifest_keys", [True, False])
def test_missing_keys(tmp_path: Path, manifest_keys: bool) -> None:
    entries: dict[str, Any] = {key: [{}] for key in ("products", "previews", "references", "programs", "inputs")}
    stages = {"stages": [{}, {"programs": [{}]}], "total": {}}
    page = Page(report.render(tmp_path, entries if manifest_keys else {}, stages if manifest_keys else {}))
    assert tmp_path.name in page.text
    assert "None" not in page.text.replace("None.", "").replace("None w", "").replace("None a", "")


def test_strange_values(directory: Path, manifest: dict[str, Any]) -> None:
    strange: list[object] = [
        None,
        "x",
        -5,
        1e300,
        10**400,
        float("nan"),
        True,
        [],
        {},
        [None, 3, "s"],
        [[{}]],
        "\ud800",
    ]
    rng = random.Random(3)  # noqa: S311 - not for secrets
    for _ in range(25):
        broken = {k: rng.choice(strange) if rng.random() < 0.3 else v for k, v in manifest.items()}
        for key in ("products", "references", "previews", "inputs"):
            rows = broken[key]
            if rng.random() < 0.5 and isinstance(rows, list):
                broken[key] = [{k: rng.choice(strange) for k in row} if isinstance(row, dict) else row for row in rows]
        metrics = {k: rng.choice(strange) if rng.random() < 0.3 else v for k, v in METRICS.items()}
        metrics["total"] = {k: rng.choice(strange) for k in METRICS["total"]}
        if isinstance(metrics["stages"], list):
            metrics["stages"] = [
                {k: rng.choice(strange) for k in s} if isinstance(s, dict) else s for s in metrics["stages"]
            ]
        Page(report.render(directory, broken, metrics)).text.encode()


def test_programs_without_stages_are_shown(directory: Path, manifest: dict[str, Any]) -> None:
    manifest["programs"] = [PROGRAM]
    assert "calcos -o out" in Page(report.render(directory, manifest, {})).text


def test_exposures_of_an_association(tmp_path: Path) -> None:
    columns = [
        fits.Column("MEMNAME", "14A", array=np.array(["LDFD01VNQ", "LDFD01VPQ", "LDFD01010"])),
        fits.Column("MEMTYPE", "14A", array=np.array(["EXP-FP", "EXP-FP", "PROD-FP"])),
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(tmp_path / "ldfd01010_asn.fits")
    for root in ("ldfd01vnq", "ldfd01vpq"):
        spectrum_file(tmp_path / f"{root}_x1d.fits", size=100)
    names = sorted(p.name for p in tmp_path.iterdir())
    table, headers = report._exposures(tmp_path, names)
    assert [row[0] for row in table["rows"]] == ["ldfd01vnq", "ldfd01vpq"]
    assert table["rows"][0][table["columns"].index("Role")] == "EXP-FP"
    assert "Filter" not in table["columns"]
    assert len(headers) == 2
    page = Page(report.render(tmp_path, {"products": [{"name": n} for n in names]}, {}))
    assert "2,232.384 s" in page.text  # both exposures


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ldfd01010_x1dsum.fits", "combined spectrum"),
        ("ldfd01010_x1dsum3.fits", "combined spectrum, FP-POS 3"),
        ("ldfd01vnq_flt_a.fits", "flat-fielded image, segment A"),
        ("ldfd01vnq.tra", "trailer: what the programs said"),
        ("j8cb010b0_drz.fits", "drizzled"),
        ("unknown_thing.fits", ""),
    ],
)
def test_products_are_explained(tmp_path: Path, name: str, what: str) -> None:
    assert report._fate(tmp_path, {"name": name})["what"] == what


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1100, 2300, ["1,200", "1,400", "1,600", "1,800", "2,000", "2,200"]),
        (-0.1, 1.2, ["0.0", "0.5", "1.0"]),
        (-30, 30, ["−20", "0", "20"]),
    ],
)
def test_ticks(low: float, high: float, labels: list[str]) -> None:
    most = {1100: 6, -0.1: 4, -30: 4}[low]
    assert [label for _, label in report.axis_ticks(low, high, most)] == labels


def test_log_keeps_the_end_and_what_warns(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(5000)]
    lines[7:7] = [f"ERROR number {i}" for i in range(300)]
    (tmp_path / "process.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "preview.txt").write_text("UserWarning: late\nfine\n", encoding="utf-8")
    log = report._log(tmp_path)
    assert log["tail"][-1] == "line 4999"
    assert len(log["tail"]) == 60
    assert len(log["alarms"]) == 200
    assert log["more"] == "101"
    assert log["lines"] == "5,300"


def test_contrast_is_aa() -> None:
    template = (Path(report.__file__).parent / "templates/report.html.j2").read_text(encoding="utf-8")

    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    palettes = re.findall(r":root \{([^}]*--good[^}]*)\}", template)
    assert len(palettes) == 2
    for palette in palettes:
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", palette))
        pairs = [(f, b) for f in ("text", "soft", "link") for b in ("page", "card", "code")]
        pairs += [(f, f"{f}-bg") for f in ("good", "bad", "warn")] + [(f"c{i}", "card") for i in range(4)]
        for front, back in pairs:
            light, dark = sorted((luminance(colors[front]), luminance(colors[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_page_is_valid_without_json_types(directory: Path, manifest: dict[str, Any]) -> None:
    """What comes back from JSON is what render is given in practice."""
    again = json.loads(json.dumps(manifest))
    assert report.render(directory, again, METRICS) == report.render(directory, manifest, METRICS)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("j8bt05njq_flt_hlet.fits", "coordinates (headerlet)"),
        ("hst_9019_05_acs_hrc_f555w_j8bt05nj_flt.fits", "flat-fielded image"),
        ("hst_9774_01_acs_wfc_total_j8ph01_point-cat.ecsv", "catalogue of point sources"),
        ("hst_skycell-p0047x20y18_acs_hrc_f555w_all_trl.txt", "trailer: what the programs said"),
        ("acs_8bt_05_manifest.txt", "list of products"),
        ("astrodrizzle.log", "log of a program"),
        ("iacs01t4q_cal_env.txt", "settings of the programs"),
        ("ldfd01vnq_rawtag_a.fits", "raw events, segment A"),
        ("ldfd01010_jnk.fits", "support, planning and telemetry"),
    ],
)
def test_what_a_product_is(tmp_path: Path, name: str, what: str) -> None:
    assert report._fate(tmp_path, {"name": name})["what"] == what


def test_the_picture_of_a_mosaic_is_the_one_in_colour() -> None:
    best_first = [
        ("total_j8ph01_drc_color.jpg", "total_j8ph01_drc.fits"),
        ("total_j8ph01_drc.jpg", "total_j8ph01_drc.fits"),
        ("f555w_j8ph01_drc.jpg", "f555w_j8ph01_drc.fits"),
        ("f555w_j8ph01nj_drz.jpg", "f555w_j8ph01nj_drz.fits"),
    ]
    start = "hst_9774_01_acs_wfc_"
    pictures = [report.Picture(f"previews/{start}{n}", start + product, "image", "") for n, product in best_first]
    assert sorted(reversed(pictures), key=report._picture_rank) == pictures


def test_a_product_of_several_exposures_is_none_itself(tmp_path: Path) -> None:
    members = [("j8bt09jcq", "EXP-CRJ", True), ("j8bt09jdq", "EXP-CRJ", True), ("j8bt09041", "PROD-CRJ", True)]
    names = [write_asn(tmp_path, "j8bt09040", *members).name]
    for root, suffix, seconds in (("j8bt09jcq", "flt", 60.0), ("j8bt09jdq", "flt", 60.0), ("j8bt09041", "crj", 120.0)):
        primary = fits.PrimaryHDU()
        primary.header.update({"ROOTNAME": root, "EXPTIME": seconds, "INSTRUME": "ACS"})
        primary.writeto(tmp_path / f"{root}_{suffix}.fits")
        names.append(f"{root}_{suffix}.fits")
    table, headers = report._exposures(tmp_path, names)
    assert [row[0] for row in table["rows"]] == ["j8bt09jcq", "j8bt09jdq"]
    assert report._facts(headers[0], headers, "acs", combined=False)["exposure"] == "120 s"
