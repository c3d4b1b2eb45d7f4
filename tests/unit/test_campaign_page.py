"""The HTML page of a campaign."""

from __future__ import annotations

import io
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from caldp import messages
from caldp.campaign import page, progress
from caldp.campaign.control import AUDIT, PAUSE, REJECTED, REQUEST, Control, log_key
from caldp.campaign.page import render
from caldp.campaign.settings import DEFAULT
from caldp.dataset import Dataset
from caldp.errors import UsageError
from caldp.local_store import LocalStore
from caldp.messages import STATES, Status
from caldp.store import Overwrite
from tests.fakes.campaign import BEGAN, OUTCOMES, Clocked, Made, make
from tests.unit.test_campaign_progress import planned, put
from tests.unit.test_report import HOSTILE, Page


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find slips of the template that readers would only see as something missing."""
    import jinja2

    monkeypatch.setattr(jinja2, "ChainableUndefined", jinja2.StrictUndefined)


@pytest.fixture(scope="module")
def made() -> Made:
    """A campaign with every kind of end, half-way."""
    return make(Clocked(), 60, progress=0.5, outcomes=(*OUTCOMES, "", "", ""))


@pytest.fixture(scope="module")
def html(made: Made) -> str:
    return render(made.control, made.settings, beside=True)


def tables(html: str) -> dict[str, list[list[str]]]:
    """Return the rows of all tables, by caption."""
    found = {}
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        caption = _plain(re.search(r"<caption>(.*?)</caption>", table, re.DOTALL)[1])  # type: ignore[index]
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        found[caption] = [[_plain(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.DOTALL)] for r in rows]
    return found


def _plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def count(text: str) -> int:
    return 0 if text == "–" else int(text.replace(",", ""))


# ---- form


def test_it_needs_nothing_but_itself(html: str) -> None:
    parsed = Page(html)
    for tag, attrs in parsed.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "video", "audio")
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "srcset", "href", "poster", "background"):
            if address := attrs.get(name):
                is_within = address.startswith(("data:", "#")) or re.fullmatch(
                    r"data/[a-z0-9]+/[\w-]+/report\.html", address
                )
                assert is_within, address
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "script" not in policy
    assert "@import" not in parsed.styles[0] and "url(" not in parsed.styles[0]


def test_it_can_be_read_by_those_who_cannot_see_it(html: str) -> None:
    parsed = Page(html)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in parsed.all("svg"):
        named = set((attrs.get("aria-labelledby") or "").split())
        assert attrs.get("aria-hidden") == "true" or (len(named) == 2 and named <= set(ids))
    assert parsed.all("svg", "plot")
    assert all(attrs.get("alt") for attrs in parsed.all("img"))
    assert all(attrs.get("scope") for attrs in parsed.all("th"))
    assert html.count("<table") == html.count("<caption>")
    for attrs in parsed.all("a"):
        href = attrs.get("href") or ""
        assert not href.startswith("#") or href[1:] in ids
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    for said in ("prefers-color-scheme: dark", "@media print", "prefers-reduced-motion"):
        assert said in parsed.styles[0]


def test_the_same_campaign_makes_the_same_page(made: Made, html: str) -> None:
    assert render(made.control, made.settings, beside=True) == html


# ---- content


def test_it_counts_what_there_is(made: Made, html: str) -> None:
    found = progress.survey(made.control, made.settings)
    head, *rows, foot = tables(html)["Datasets by instrument and state"]
    assert head[2:-1] == list(STATES)
    assert {row[0]: dict(zip(STATES, map(count, row[2:-1]), strict=True)) for row in rows} == {
        name: dict.fromkeys(STATES, 0) | states for name, states in found.states.items()
    }
    assert list(map(count, foot[1:-1])) == list(found.counts.values())
    assert count(foot[-1]) == 60
    text = Page(html).text
    assert f"{found.done} of 60 datasets are processed" in text
    assert "about" in text and "left" in text


def test_the_charts_end_as_the_campaign_stands(made: Made, html: str) -> None:
    found = progress.survey(made.control, made.settings)
    by_caption = tables(html)
    history = by_caption["States over time"]
    assert history[0] == ["Time (UTC)", "processed", "failed", "processing", "submitted", "waiting"]
    sums = [sum(map(count, row[1:])) for row in history[1:]]
    assert sums == [60] * 9
    states = found.counts
    expected = [found.done, found.failed, states["processing"], states["submitted"], states["placed"]]
    assert list(map(count, history[-1][1:])) == expected
    assert history[1][1:3] == ["0", "0"]
    throughput = by_caption["Throughput"][1:]
    assert [sum(count(row[column]) for row in throughput) for column in (1, 2)] == [found.done, found.failed]
    parsed = Page(html)
    for view in ("wide", "narrow"):
        assert len(parsed.all("svg", view)) == 4
    drawn = [attrs["d"] for attrs in parsed.all("path")]
    assert drawn and all(re.fullmatch(r"[MLHVZ0-9. -]+", path or "") for path in drawn)


def test_a_history_that_has_lost_its_end_ends_as_the_dataset_stands() -> None:
    store = Clocked(BEGAN + timedelta(hours=1))
    first, second = planned(store, 2)
    for name in (first, second):
        put(store, name, "processing", 0)
        put(store, name, "processed", 10)
    status = messages.read(store, second)
    assert status is not None
    record = status.to_json() | {"history": status.to_json()["history"][:1]}
    store.put(messages.status_key(second), json.dumps(record).encode(), Overwrite())
    last = tables(render(Control(store), DEFAULT))["States over time"][-1]
    assert last[1:] == ["2", "0", "0", "0", "0"]


def test_datasets_that_failed_come_first_and_processed_ones_have_links(made: Made, html: str) -> None:
    head, *rows = next(rows for caption, rows in tables(html).items() if caption.startswith("All datasets"))
    assert head[:3] == ["Dataset", "State", "Attempt"]
    assert sorted(row[0] for row in rows) == sorted(made.datasets)
    states = [row[1] for row in rows]
    order = ["error", "cancelled", "processing", "submitted", "placed", "processed", "synced", "archived"]
    assert [order.index(state) for state in states] == sorted(order.index(state) for state in states)
    hrefs = {attrs["href"] for attrs in Page(html).all("a", "file")}
    done = {row[0] for row in rows if row[1] in ("processed", "synced", "archived")}
    assert hrefs == {f"{Dataset.parse(name).prefix}/report.html" for name in done}
    broken = next(row for row in rows if row[-1].startswith("deterministic"))
    assert "exit 21 INPUT_TAR_FILE_ERROR" in broken[-1] and broken[4] and broken[5]


def test_links_lead_to_pages(tmp_path: Path, made: Made) -> None:
    folder = tmp_path / "mvp 100% #1"
    folder.mkdir()
    local = make(LocalStore(folder), 8, outcomes=("", "broken"))
    near = [a["href"] for a in Page(render(local.control, DEFAULT, beside=True)).all("a", "file")]
    far = [a["href"] for a in Page(render(local.control, DEFAULT)).all("a", "file")]
    assert len(near) == len(far) == 4
    assert all((folder / (href or "")).is_file() for href in near)
    assert all(Path(unquote(urlsplit(href or "").path)).is_file() for href in map(str, far))
    assert all(str(href).startswith("file:///") for href in far)
    elsewhere = render(made.control, DEFAULT)
    assert not Page(elsewhere).all("a", "file")
    assert "Their pages: memory:/mvp/data/…/report.html" in Page(elsewhere).text


def test_failures_have_the_end_of_a_log(made: Made, html: str) -> None:
    found = progress.survey(made.control, made.settings)
    text = Page(html).text
    assert len(re.findall(r'<div class="cause">', html)) == len(found.failures) >= 3
    for failure in found.failures:
        assert failure.what.reason in text
        name = failure.what.examples[0]
        assert f"of the log of {name}" in text
    assert "calibrate calcos: step 39" in text and "calibrate calcos: step 2 " not in text
    causes = {
        row[0]: row
        for row in tables(html)["All runs that made no products, whether or not the dataset was processed afterwards"][
            1:
        ]
    }
    assert {"oom", "transient", "unknown", "deterministic"} <= causes.keys()
    assert causes["oom"][1] == "payload" and causes["transient"][1] == "infrastructure"


def test_a_log_is_found_wherever_the_run_has_left_it() -> None:
    store = Clocked(BEGAN)
    control = Control(store)
    names = planned(store, 4)
    for number, name in enumerate(names):
        put(store, name, "error", reason=f"cause {'abcd'[number]}", exit_code=23, cause="deterministic")
    store.put(log_key(names[0], 1), b"\xff\x1b[31mred\x1b[0m \xe2\x82\xac\n", Overwrite())
    store.put(f"{Dataset.parse(names[1]).prefix}/logs/process.txt", b"of the run\n" * 99, Overwrite())
    store.put(log_key(names[2], 1), b"x" * (page._LOG_SIZE + 1), Overwrite())
    text = Page(render(control, DEFAULT)).text
    assert "� red €" in text.replace("�red", "� red")
    assert "Last 25 lines of the log of " + names[1] in text
    assert f"too long to be shown (8 MB): {log_key(names[2], 1)}" in text
    assert f"of the log of {names[3]}" not in text


def test_costs_and_needs(made: Made, html: str) -> None:
    sample = progress.look_at(made.control, progress.take_stock(made.control))
    found = progress.runs(made.control, sample, made.settings)
    total = sum(progress.costs(found, made.settings).values(), progress.Cost())
    rows = next(rows for caption, rows in tables(html).items() if caption.startswith("What runs have cost"))
    assert rows[-1][0] == "All" and count(rows[-1][1]) == len(found)
    assert rows[-1][4] == f"${total.dollars:.2f}" and rows[-1][6] == f"${total.wasted:.2f}"
    assert rows[-1][8] == f"${total.retries:.2f}"
    needs = next(rows for caption, rows in tables(html).items() if caption.startswith("What runs that ended well"))
    assert {row[0] for row in needs[2:]} == set(progress.needs(found))
    description = re.search(r"Median, 95th percentile and most, by instrument\. acs: used [\d.]+ [MG]B", html)
    assert description


def test_plan_request_and_operators(html: str) -> None:
    text = Page(html).text
    for said in (
        "Rejected from the list, or not planned: 2",
        "skycell-p9999x99y99 : needs more than the ladder has",
        "line 7: n4k001010 : NICMOS",
        "2026-11-22 06:00:00 operator@host: submit",
        "caldp-config-offsite",
        "hst_1311.pmap",
        "calcos 3.6.2",
        "The figures that it goes by",
        "new flat fields",
    ):
        assert said in text, said
    classes = next(rows for caption, rows in tables(html).items() if caption.startswith("Datasets by class"))
    assert sum(count(row[1]) for row in classes[1:]) == 60


# ---- pictures


def test_some_pictures_of_all_instruments_are_shown(made: Made, html: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PICTURES", 6)
    few = Page(render(made.control, made.settings)).all("img")
    assert len(few) == 6
    names = [(attrs.get("alt") or "").removeprefix("Preview of ") for attrs in few]
    found = progress.survey(made.control, made.settings)
    with_products = {name for name, states in found.states.items() if "processed" in states}
    assert {Dataset.parse(name).instrument for name in names} == with_products
    assert 6 < len(Page(html).all("img")) <= 24
    assert "6 of " in Page(render(made.control, made.settings)).text


def test_pictures_are_downsized_and_what_is_none_is_left_out() -> None:
    made = make(Clocked(), 10, outcomes=("",))
    store = made.control.store
    noise = io.BytesIO()
    Image.effect_noise((900, 900), 80).save(noise, "PNG")
    manifests = [f"{Dataset.parse(name).prefix}/manifest.json" for name in made.datasets]
    damage: list[Any] = [
        b"{", b"[]", b"\xff", {"previews": [{"kind": "thumbnail", "name": "../../../etc/passwd"}]},
        {"previews": "x"}, {"previews": [{"kind": "thumbnail"}, 3]}, {"previews": [{"kind": "table", "name": "a"}]},
    ]  # fmt: skip
    for key, what in zip(manifests, damage, strict=False):
        store.put(key, what if isinstance(what, bytes) else json.dumps(what).encode(), Overwrite())
    assert isinstance(store, Clocked)
    outside = f"{Dataset.parse(made.datasets[3]).prefix}/../../../etc/passwd"
    store.objects[outside] = store.objects[
        f"{Dataset.parse(made.datasets[9]).prefix}/previews/{made.datasets[9]}_flt_thumb.png"
    ]
    for name, data in zip(made.datasets[7:], (noise.getvalue(), b"no picture", b"\x89PNG\r\n\x1a\n cut"), strict=True):
        store.put(f"{Dataset.parse(name).prefix}/previews/{name}_flt_thumb.png", data, Overwrite())
    (image,) = Page(render(made.control, made.settings)).all("img")
    assert image["alt"] == f"Preview of {made.datasets[7]}"
    assert image["src"] is not None and len(image["src"]) < 60_000


# ---- size


def test_of_many_datasets_some_are_read_and_some_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(Clocked(), 400, progress=0.6, data=False)
    monkeypatch.setattr(page, "ALL", 100)
    monkeypatch.setattr(page, "OF_EACH", 40)
    monkeypatch.setattr(page, "ROWS", 30)
    html = render(made.control, made.settings)
    found = progress.survey(made.control, made.settings)
    assert "Sampled:" in Page(html).text
    rows = next(rows for caption, rows in tables(html).items() if caption.startswith("30 of 400 datasets"))
    assert len(rows) == 31
    errors = min(30, found.counts["error"])
    assert [row[1] for row in rows[1 : errors + 1]] == ["error"] * errors
    last = list(map(count, tables(html)["States over time"][-1][1:]))
    states = found.counts
    assert last == [found.done, found.failed, states["processing"], states["submitted"], states["placed"]]


def test_the_page_of_any_campaign_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Clocked(BEGAN + timedelta(hours=1))
    control = Control(store)
    monkeypatch.setattr(messages, "project", lambda store, status: None)  # it takes its time
    names = planned(store, page.ROWS + 300)
    for number, name in enumerate(names):
        reason = f"{'<&>' * 3000} {'abcdefghijklmnopqrstuvwxyz'[number % 26] * 7} {'xyz'[number % 3] * 9}"
        put(store, name, "error", reason=reason, exit_code=23, cause="deterministic" * 99)
        store.objects[f"messages/dataset-error/{name}"] = b""
        store.put(log_key(name, 1), b"<&>\n" * 99_000, Overwrite()) if number < 50 else None
    store.put(AUDIT, b"".join(json.dumps({"what": "<" * 9999}).encode() + b"\n" for _ in range(99)), Overwrite())
    store.put(REJECTED, b"".join(json.dumps({"text": "&" * 9999}).encode() + b"\n" for _ in range(9999)), Overwrite())
    html = render(control, DEFAULT)
    assert html.count('class="mark error"') == page.ROWS
    assert len(html.encode()) < 5_000_000


# ---- what may be wrong


def test_hostile_text_is_only_text() -> None:
    made = make(
        Clocked(),
        12,
        outcomes=("broken", "", "hopeless"),
        reason=f"{{name}}: {HOSTILE}".replace("{{ 7", "{{{{ 7").replace("7 }}", "7 }}}}"),
    )
    store = made.control.store
    store.put(AUDIT, json.dumps({"at": HOSTILE, "by": HOSTILE, "what": HOSTILE, "why": HOSTILE}).encode(), Overwrite())
    store.put(REJECTED, json.dumps({"line": 1, "text": HOSTILE, "reason": HOSTILE}).encode(), Overwrite())
    store.put(PAUSE, HOSTILE.encode(), Overwrite())
    request = made.control.request() | {"label": HOSTILE, HOSTILE: HOSTILE, "settings": {HOSTILE: HOSTILE}}
    store.put(REQUEST, json.dumps(request).encode(), Overwrite())
    failed = next(n for n in made.datasets if (s := messages.read(store, n)) and s.state == "error")
    status = messages.read(store, failed)
    assert status is not None
    messages.amend(store, Status(**{**vars(status), "cause": HOSTILE, "rung": HOSTILE}))
    store.put(log_key(failed, 1), HOSTILE.encode(), Overwrite())
    for name in made.datasets:
        key = f"{Dataset.parse(name).prefix}/manifest.json"
        if blob := store.get(key):
            record = json.loads(blob.data) | {"context": HOSTILE, "versions": {HOSTILE: HOSTILE}}
            store.put(key, json.dumps(record).encode(), Overwrite())
    html = render(made.control, made.settings, beside=True)
    parsed = Page(html)
    assert not parsed.all("script") and not any("onerror" in attrs for _, attrs in parsed.tags)
    assert html.count("<img") == len([a for a in parsed.all("img") if (a["src"] or "").startswith("data:image/")])
    assert "{{ 7 * 7 }}" in parsed.text and "\x1b" not in html


def test_a_campaign_that_has_only_been_planned() -> None:
    store = Clocked(BEGAN)
    planned(store, 3)
    text = Page(render(Control(store), DEFAULT)).text
    for said in (
        "0 of 3 datasets are processed, 3 open.",
        "Nothing has happened yet.",
        "No run has ended yet.",
        "There are none.",
    ):
        assert said in text
    store.put("control/plan.json", b"{}", Overwrite())
    store.delete(*[key for key in store.objects if key.startswith("control/manifests/")])
    assert "There is nothing to do." in Page(render(Control(store), DEFAULT)).text


def test_damage_is_said_and_no_more() -> None:
    store = Clocked(BEGAN + timedelta(hours=1))
    first, second, third = planned(store, 3)
    put(store, first, "processed")
    put(store, second, "processing", 1)
    put(store, third, "error", 2, reason="x", exit_code=23)
    store.put(messages.status_key(first), b"{", Overwrite())
    store.put(f"messages/dataset-error/{first}", b"", Overwrite())
    store.put(
        "control/plan.json", json.dumps({"refused": 3, "canary": "x", "hours": "y", "cost": {}}).encode(), Overwrite()
    )
    for key in (AUDIT, REJECTED, REQUEST):
        store.put(key, b"\xff\n[]\n{\n", Overwrite())
    text = Page(render(Control(store), DEFAULT)).text
    assert f"Damaged: the status cannot be understood of {first}" in text
    assert f"1 stale: processing, but their runs are dead: {second}" in text
    assert "not judged yet" in text


def test_a_campaign_that_took_no_time_has_no_charts() -> None:
    store = Clocked(BEGAN)
    (name,) = planned(store, 1)
    put(store, name, "processed")
    text = Page(render(Control(store), DEFAULT)).text
    assert "The dataset is processed." in text and "Nothing has happened yet" in text


def test_without_a_campaign_there_is_no_page() -> None:
    with pytest.raises(UsageError, match="is no campaign"):
        render(Control(Clocked()), DEFAULT)


# ---- axes


@pytest.mark.parametrize("seconds", [0.5, 3, 59, 100, 3600, 7200, 86_000, 86_400 * 3, 86_400 * 40, 86_400 * 4000])
@pytest.mark.parametrize("most", [4, 9])
def test_axes_of_time_have_a_few_round_ticks(seconds: float, most: int) -> None:
    ticks = page._time_ticks(BEGAN + timedelta(seconds=17.3), seconds, most)
    assert len(ticks) <= most + 1
    assert all(0 <= share <= 1 for share, _ in ticks)
    if seconds >= 10:
        assert len(ticks) >= 1
    labels = [label for _, label in ticks]
    assert all(before != after for before, after in zip(labels, labels[1:], strict=False)) or seconds > 86_400 * 365


@pytest.mark.parametrize(
    ("value", "what", "said"),
    [(60, "time", "1 min"), (0.1, "time", "0.1 s"), (30, "time", "30 s"), (7200, "time", "2 h"),
     (86400, "time", "24 h"), (259200, "time", "3 d"), (5e8, "memory", "500 MB"), (2e9, "memory", "2 GB")],
)  # fmt: skip
def test_labels_of_logarithmic_axes(value: float, what: str, said: str) -> None:
    assert page._short(value, what) == said


@pytest.mark.parametrize(
    ("dollars", "said"),
    [(0, "$0.00"), (0.00001, "<$0.0001"), (0.003, "<$0.01"), (1.005, "$1.00"), (12345.6, "$12,346")],
)
def test_amounts(dollars: float, said: str) -> None:
    assert page._dollars(dollars) == said
