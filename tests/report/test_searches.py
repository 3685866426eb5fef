import re

import pytest

from compress.report import charts, render, searches
from tests.report.sample_run import plain, sample_run, with_step
from tests.report.search_facts import candidate, recovered, search_facts, searched_run
from tests.report.test_page import Page


def drawn(search):
    return searches.candidates(sample_run().step("narrow"), search)


def axes(search):
    return searches.probes(sample_run().step("narrow"), search)


def test_every_candidate_is_drawn_and_the_chosen_and_the_even_one_are_named():
    chart = drawn(search_facts())
    assert [point.kind for point in chart.points] == ["baseline", "student", "best", "student"]
    assert [p.label.text for p in chart.points if p.label] == ["even shape", "chosen"]


def test_less_divergence_is_lower_and_less_cost_further_left():
    even, second, chosen, cheapest = drawn(search_facts()).points
    assert even.y < cheapest.y < second.y < chosen.y
    assert cheapest.x < even.x < chosen.x < drawn(search_facts()).budget
    assert all(point.high < point.y < point.low for point in (even, second, chosen, cheapest))


def test_recovered_candidates_are_drawn_by_what_they_are_chosen_by():
    search = recovered(search_facts(), 0.2, 0.05, 0.06, 0.04)
    chart = drawn(search)
    assert [point.kind for point in chart.points] == ["baseline", "student", "student", "best"]
    assert chart.points[1].y > chart.points[2].y
    assert "teacher" in chart.y_name
    twin = searches.candidates_twin(sample_run().step("narrow"), search)
    assert "Recovered" in twin.columns
    assert plain(twin.rows[3].cells[2].main.text) == "0.0400 nats"


def test_a_lone_candidate_that_is_the_even_shape_is_drawn():
    lone = candidate((6, 192, 640, 3), 0.4, 0.469, is_even=True, is_chosen=True)
    [point] = drawn(search_facts(candidates=[lone])).points
    assert point.kind == "best" and point.label.text == "chosen, even shape"
    exact = candidate((6, 192, 640, 3), 0.0, 0.0, is_even=True, is_chosen=True, cost=2_450_000.0)
    assert len(drawn(search_facts(candidates=[exact])).points) == 1


def test_marks_and_ticks_stay_inside_the_frame():
    chart, lines = drawn(search_facts()), axes(search_facts())
    assert len(chart.x_ticks) >= 2 and len(chart.y_ticks) >= 2
    assert len(lines.x_ticks) >= 2 and len(lines.y_ticks) >= 2
    spots = [(p.x, y) for p in chart.points for y in (p.low, p.y, p.high)]
    spots += [(x, y) for line in lines.lines for x, y, _ in line.dots]
    spots += [(tick.at, charts.TOP) for tick in (*chart.x_ticks, *lines.x_ticks)]
    assert all(charts.LEFT <= x <= charts.RIGHT and charts.TOP <= y <= charts.BOTTOM for x, y in spots)


def test_an_axis_that_costs_more_lies_higher():
    by_name = {line.label.text: line for line in axes(search_facts()).lines}
    assert list(by_name) == ["layers", "hidden size", "FFN neurons", "KV groups"]
    at_half = [
        next(y for _, y, t in by_name[name].dots if re.match(r"(128|384|2) of", t))
        for name in ("hidden size", "KV groups", "FFN neurons")
    ]
    assert at_half == sorted(at_half)


def test_what_cost_nothing_is_in_the_table_and_not_on_the_logarithmic_chart():
    free = {"axis": "ffn", "whole": 768, "size": 576, "divergence": 0.0, "error": 0.0}
    assert axes(search_facts(probes=[free])) is None
    twin = searches.probes_twin(sample_run().step("narrow"), search_facts(probes=[free]))
    assert plain(twin.rows[0].cells[1].main.text) == "0 nats"


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("params", 3.2e6, "3.20 M"),
        ("memory", 6.1e9, "6.10 GB"),
        ("flops", 8e9, "8.00 B FLOPs"),
        ("latency", 19.4, "19.4 ms"),
    ],
)
def test_a_cost_is_written_in_its_unit(cost, value, text):
    tried = [candidate((6, 192, 640, 3), 0.4, 0.47, cost=value, is_chosen=True)]
    search = search_facts(cost=cost, budget=1.05 * value, candidates=tried)
    cells = [
        plain(cell.main.text)
        for cell in searches.candidates_twin(sample_run().step("narrow"), search).rows[0].cells
    ]
    assert text in cells
    assert drawn(search).x_name == searches.COSTS[cost][0]


def test_the_page_draws_a_search_in_a_section_of_its_own():
    html = render(searched_run())
    page = Page(html)
    assert {"href": "#search"} in page.all("a")
    section = re.search(r'<section id="search".*?</section>', html, re.DOTALL)[0]
    assert section.count("<figure>") == 2 and section.count("<table>") == 2
    assert "7 layers, hidden 256, FFN 256, KV heads 4" in section
    assert '"candidates"' not in page.text, "the raw fact is printed beside the charts"
    assert 'id="search"' not in render(sample_run())


def test_a_shape_that_was_measured_is_no_wrong_prediction():
    guess = sample_run().step("narrow").realized.model_copy(update={"num_parameters": 2_000_000})
    text = plain(Page(render(with_step(searched_run(), "narrow", predicted=guess))).text)
    assert "planned: about 2.00 M" in text
    assert "predicted by the plan was not the size made" not in text and "off by" not in text


def test_work_done_for_a_step_is_listed_with_its_settings_and_time():
    text = plain(Page(render(searched_run())).text)
    assert "Work done for steps" in text
    assert 'tokens 131072, shapes [{"ffn": 576}]' in text and "prune.probe-key" in text
    assert "Work done for steps" not in Page(render(sample_run())).text
