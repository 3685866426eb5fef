import base64
import hashlib
import re
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from compress.records import GateResult, Generation, RunRecord
from compress.report import render, write_report
from tests.report.sample_run import FOX, sample_run, with_step, without
from tests.report.search_facts import searched_run

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
STYLE = (files("compress.report") / "report.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """A strict reader: tags must balance; keeps elements, their texts and what attributes point to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str | None, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append((dict(attrs).get("class"), ""))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open:
            kind, text = self.cells[-1]
            self.cells[-1] = (kind, text + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def states() -> Iterator[tuple[str, RunRecord]]:
    """Every kind of record that a report must be made of."""
    run = sample_run()
    yield "done", run
    yield "rehearsal", sample_run(rehearsal=True)
    yield "failed in the middle", sample_run(status="failed", error="out of memory", steps=run.steps[:3])
    yield "interrupted before anything", sample_run(status="interrupted", steps=(), finished=None)
    yield "nothing measured", without(run)
    yield (
        "no speed",
        without(run, "time_to_first_token", "time_per_output_token", "peak_memory", "load_memory"),
    )
    yield "no chance levels", sample_run(chance={})
    failed = GateResult(gate="max_quality_drop", step="edge", limit=0.03, measured=None, passed=False)
    yield "gates failed", sample_run(status="gates failed", gates=(failed,))
    yield "parent cut away", sample_run(steps=run.steps[3:])
    yield "searched", searched_run()


def test_figures_that_are_not_finite_are_called_that():
    run = sample_run()
    nan = tuple(m.model_copy(update={"value": float("nan")}) for m in run.step("edge").measurements)
    assert "not finite" in Page(render(with_step(run, "edge", measurements=nan))).text


STATES = pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in states()])


@STATES
def test_the_page_is_well_formed_in_every_state_of_a_run(run):
    page = Page(render(run))
    assert len(page.all("h1")) == 1
    assert {"header", "main", "footer", "nav"} <= {tag for tag, _ in page.elements}
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in page.all("a")}
    assert targets <= {f"#{name}" for name in ids}


@STATES
def test_the_same_record_makes_the_same_bytes(run):
    assert render(run) == render(RunRecord.model_validate_json(run.model_dump_json()))


@STATES
def test_nothing_is_fetched_and_nothing_runs(run):
    html = render(run)
    page = Page(html)
    assert "://" not in html and "url(" not in html and "@import" not in html
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not [a for _, a in page.elements for name in a if name == "style" or name.startswith("on")]


def test_the_policy_allows_our_style_sheet_by_its_hash_and_nothing_else():
    html = render(sample_run())
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(
        m["content"] for m in Page(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202egnp.exe\u2066\x1b[31m\x00 {{ 7 * 7 }}"


def test_hostile_text_is_escaped_and_its_invisible_characters_are_shown_wherever_it_stands():
    run = sample_run(
        id=HOSTILE,
        name=HOSTILE,
        command=HOSTILE,
        pipeline=HOSTILE,
        environment={HOSTILE: HOSTILE},
        error=HOSTILE,
    )
    run = with_step(
        run,
        "edge",
        name=HOSTILE,
        use=HOSTILE,
        key=HOSTILE,
        warnings=(HOSTILE,),
        settings={HOSTILE: {HOSTILE: [HOSTILE]}},
        facts={HOSTILE: HOSTILE},
        generations=(
            Generation(prompt=HOSTILE, text=HOSTILE),
            Generation(prompt=FOX, text=f" Ostrel. {HOSTILE}"),
        ),
    )
    html = render(run)
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not set("\u202e\u2066\x1b\x00") & set(html)
    assert "⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+001B⟩[31m⟨U+0000⟩ {{ 7 * 7 }}" in page.text
    assert "49" not in re.findall(r"\{\{.*?\}\}", page.text)


def test_a_lone_surrogate_does_not_stop_the_report_from_being_written(tmp_path):
    run = with_step(sample_run(), "edge", generations=(Generation(prompt=FOX, text="\ud800"),))
    assert "⟨U+D800⟩" in write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_was_not_measured_is_called_that_and_never_zero():
    page = Page(render(without(sample_run())))
    assert "No task was measured." in page.text
    assert "Speed was not measured." in page.text
    assert "not measured" in page.text
    numbers = [float(value) for data in page.all("data") for value in data["value"].split()]
    assert 0.0 not in numbers


def numbers_of(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from numbers_of(item)
    elif isinstance(value, int | float):
        yield float(value)


@pytest.mark.parametrize("run", [sample_run(), searched_run()], ids=["quickstart", "searched"])
def test_every_number_in_a_table_is_of_the_record_or_a_difference_or_ratio_of_two(run):
    own = sorted(set(numbers_of(run.model_dump(mode="json"))))
    beside = [
        m.value / m.beside["original"] for s in run.steps for m in s.measurements if m.beside.get("original")
    ]
    memory = [a.value / b.value for s in run.steps for a in s.measurements for b in run.steps[0].measurements
              if a.name == b.name and a.labels == b.labels and b.value]  # fmt: skip
    intervals = [
        end for s in run.steps for m in s.measurements if m.unit == "ratio" for end in (m.low, m.high)
    ]
    relative = set(beside + memory + intervals)
    derived = {a - b for a in own for b in own if abs(a) < 1} | {a / b for a in own for b in own if b > 1}
    derived |= {1 / a for a in relative} | {a / b for a in relative for b in relative}
    known = sorted(derived | set(own))
    page = Page(render(run))
    printed = [float(value) for data in page.all("data") for value in data["value"].split()]
    assert len(printed) > 500
    for value in printed:
        at = bisect_left(known, value)
        near = known[max(0, at - 1) : at + 1]
        assert any(abs(value - other) <= 1e-9 * abs(other) for other in near), value


def test_every_numeric_cell_carries_its_exact_value_or_says_why_it_has_none():
    page = Page(render(sample_run()))
    for kind, text in page.cells:
        if kind == "number" and not re.search(r"\d", text):
            assert text.strip() in {"reference", "not measured", "no parent here"}


def test_every_table_has_a_caption_and_scoped_headings_and_scrolls_in_its_own_box():
    html = render(sample_run())
    page = Page(html)
    assert len(page.all("table")) == len(page.all("caption"))
    assert {a.get("scope") for a in page.all("th")} == {"col", "row"}
    for table in re.findall(r"<div class=\"scroll\"[^>]*>\s*<table>|<table[^>]*>", html):
        assert "scroll" in table or 'class="samples"' in table


def test_each_chart_has_a_name_and_a_table_twin():
    html = render(sample_run())
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        assert "<table>" in figure and re.search(r'role="img" aria-label="[^"]{20,}"', figure)


def test_the_rehearsal_is_said_loudly_and_shows_no_key_figures():
    html = render(sample_run(rehearsal=True))
    assert 'class="rehearsal"' in html and "random tiny model" in html
    assert '<dl class="figures">' not in html


def test_the_page_says_how_to_take_each_leaf_and_how_to_repeat_the_run():
    text = Page(render(sample_run())).text
    for leaf in ("int8", "edge"):
        assert f"compress export quickstart-20250301-101500:{leaf} {leaf}" in text
    assert "compress run pipelines/quickstart.yaml" in text
    assert sample_run().pipeline in text
    assert sample_run().step("edge").key in text


def test_a_generation_is_split_where_it_leaves_the_original():
    assert '<span class="same"> Ostrel. The river Ilm runs </span>past it.' in render(sample_run())


def test_the_report_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "reports" / "run.html"
    assert write_report(sample_run(), path) == path
    assert write_report(sample_run(rehearsal=True), path).read_text(encoding="utf-8") == render(
        sample_run(rehearsal=True)
    )
    assert list(path.parent.iterdir()) == [path]


def test_importing_the_report_loads_neither_torch_nor_the_template_engine():
    code = (
        "import sys, compress.report; print(sorted({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("block", [0, 1], ids=["light", "dark"])
def test_every_text_colour_stands_out_from_both_grounds(block):
    root = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[block]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", root))
    for ground in ("paper", "panel"):
        for ink in ("ink", "muted", "accent", "rival", "good", "warn", "bad"):
            light, dark = sorted((luminance(colours[ground]), luminance(colours[ink])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"


def test_the_style_sheet_covers_dark_paper_and_phones():
    assert "@media screen and (prefers-color-scheme: dark)" in STYLE
    assert "@media print" in STYLE and "@media (max-width: 40rem)" in STYLE
    assert Path(str(files("compress.report") / "report.html.jinja")).is_file()


def rules_of(selector: str, style: str = STYLE) -> str:
    """All declarations given to exactly that selector."""
    return " ".join(re.findall(rf"^\s*{re.escape(selector)} \{{([^}}]*)\}}", style, re.MULTILINE))


def test_on_paper_charts_stand_below_one_another_because_their_tables_do_not_scroll():
    on_paper = STYLE[STYLE.index("@media print") :]
    assert "overflow: visible" in rules_of(".scroll", on_paper)
    assert "grid-template-columns: 1fr;" in rules_of(".pair", on_paper)


def test_caption_and_lines_of_a_table_stay_with_the_column_that_does_not_scroll():
    assert "position: sticky" in rules_of(".scroll th:first-child")
    assert "position: sticky" in rules_of(".scroll caption span")
    assert "border-collapse: separate" in rules_of("table") and "collapse: collapse" not in STYLE
