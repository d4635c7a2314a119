import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from page_reader import Page
from privet.simulations.charts import (
    Bar,
    Caption,
    Series,
    column_strip,
    line_chart,
    named_bars,
    ticks,
    waffle,
)
from privet.simulations.report import write_report

HOSTILE = '"><script>alert(1)</script>'
EPSILONS = ("3.00", "2.81", "3.31", "2.9995", "3.3012", "1.90")


def result(nodes: int = 4, rounds: int = 6) -> dict[str, Any]:
    """A finished run with everything that a result can hold."""
    return {
        "format": 1,
        "name": "digits",
        "run_id": "run-1",
        "task": "digits",
        "task_version": "1",
        "dataset": "digits",
        "model": {"kind": "linear"},
        "plan_hash": "ab" * 32,
        "submission_hash": "cd" * 32,
        "seed": 7,
        "accuracy": 0.91,
        "accuracy_note": "simulator's view, not a release",
        "loss": 0.5,
        "accuracy_without_privacy": 0.96,
        "epsilon": 2.9995,
        "epsilon_executed": 2.81,
        "epsilon_rdp_bound": 3.3012,
        "delta": 1e-05,
        "unit": "record",
        "relation": "add-or-remove-one",
        "mechanism": "local",
        "noise_multiplier": 3.2,
        "clip_norm": 1.0,
        "sampling_rate": 0.2,
        "local_steps": 5,
        "noise_seeded": True,
        "accountant": "PLD (dp-accounting 0.6.0, grid 1e-3)",
        "rounds": rounds,
        "rounds_charged": rounds + 2,
        "evaluations_charged": 2,
        "seconds": 4.2,
        "engine": "sequential",
        "strategy": "fedavg",
        "interrupted": False,
        "classes": ["0", "1", "2"],
        "partition": {"kind": "dirichlet", "alpha": 0.3},
        "records": {"training": 1617, "held_out": 180},
        "nodes": [node(number, rounds) for number in range(nodes)],
        "history": [
            {
                "round": number,
                "accuracy": 0.91 * number / rounds,
                "loss": 2.3 - 1.8 * number / rounds,
                "epsilon_executed": 2.81 * number / rounds,
                "answered": nodes,
                "seconds": 0.1,
                "released": {"accuracy": 0.88} if number == rounds else None,
            }
            for number in range(rounds + 1)
        ],
        "history_without_privacy": [
            {"round": number, "accuracy": 0.96 * number / rounds, "loss": 2.3 - 2 * number / rounds}
            for number in range(rounds + 1)
        ],
        "versions": {"privet": "0.1.0", "python": "3.11.7"},
    }


def node(number: int, rounds: int) -> dict[str, Any]:
    return {
        "name": f"node-{number}",
        "declared_size": 162,
        "epsilon": 2.9995,
        "epsilon_executed": 2.81,
        "state": "finished",
        "reason": None,
        "rounds_answered": rounds,
        "labels": [number, 40, 0],
    }


def without_claim(shown: dict[str, Any]) -> dict[str, Any]:
    claims = "epsilon epsilon_executed epsilon_rdp_bound delta relation mechanism noise_multiplier accountant"
    shown |= dict.fromkeys(claims.split()) | {"unit": "none", "accuracy_without_privacy": None}
    shown["history_without_privacy"] = None
    for entry in [*shown["nodes"], *shown["history"]]:
        entry["epsilon_executed"] = None
    for entry in shown["nodes"]:
        entry["epsilon"] = None
    return shown


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(shown: dict[str, Any]) -> tuple[str, Page]:
        before = copy.deepcopy(shown)
        write_report(shown, tmp_path / "report.html")
        assert repr(shown) == repr(before)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        return text, Page(text)

    return write


def test_page_fetches_nothing(written: Any) -> None:
    text, page = written(result())
    assert re.findall(r"https?://[^\"']*", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert "url(" not in text
    assert "@import" not in text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "image", "use"})
    assert not any({"src", "href", "xlink:href"} & attributes.keys() for _, attributes in page.tags)
    policies = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_first_sentence_says_what_happened(written: Any) -> None:
    _, page = written(result() | {"noise_seeded": False})
    assert "Four institutions trained digits together. Each can say: at most epsilon 3.00 at delta" in page.text
    assert "Seeded noise" not in page.text


def test_seeded_noise_claims_nothing_for_this_very_run(written: Any) -> None:
    _, page = written(result())
    assert "Run with fresh noise, each could say" in page.text
    assert "it protects nobody" in page.text


def test_every_epsilon_stands_beside_delta_unit_and_relation(written: Any) -> None:
    shown = result()
    shown["nodes"][1] |= {"state": "failed", "reason": "out of memory", "epsilon_executed": 1.9}
    _, page = written(shown)
    claims = [block for block in page.closed_blocks if any(number in block for number in EPSILONS)]
    assert len(claims) >= 7
    for block in claims:
        assert "delta 1e-05 per record, add-or-remove-one" in block


def test_epsilon_is_rounded_up(written: Any) -> None:
    shown = result() | {"epsilon": 2.991, "epsilon_executed": 0.00011}
    _, page = written(shown)
    assert "epsilon 3.00" in page.text
    assert "executed 0.0002" in page.text


@pytest.mark.parametrize("lacking", ["delta", "relation"])
def test_epsilon_without_its_terms_is_refused(lacking: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no claim"):
        write_report(result() | {lacking: None}, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_infinite_epsilon_and_unknown_format_are_refused(tmp_path: Path) -> None:
    for wrong in ({"epsilon": math.inf}, {"format": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            write_report(result() | wrong, tmp_path / "report.html")


def test_unit_none_prints_no_epsilon_number(written: Any) -> None:
    careless = result() | {"unit": "none"}  # numbers that must not be shown, since nothing is claimed
    for shown in (without_claim(result()), careless):
        text, page = written(shown)
        assert "No privacy is claimed for this run." in page.text
        assert not any(number in text for number in EPSILONS)
        assert "1e-05" not in text
        assert "epsilon" not in page.text.lower()
        assert "with privacy" not in page.text


def test_hostile_names_come_out_as_text(written: Any) -> None:
    shown = result()
    for key in ("name", "run_id", "task", "task_version", "dataset", "engine", "strategy", "accuracy_note"):
        shown[key] = HOSTILE
    for key in ("accountant", "plan_hash", "submission_hash", "relation", "mechanism", "unit"):
        shown[key] = HOSTILE
    shown |= {"model": {"kind": HOSTILE, HOSTILE: HOSTILE}, "partition": {HOSTILE: HOSTILE}}
    shown |= {"classes": [HOSTILE] * 3, "versions": {HOSTILE: HOSTILE}, "records": {HOSTILE: 1}}
    shown["nodes"][0] |= {"name": HOSTILE, "reason": HOSTILE, "state": HOSTILE}
    text, page = written(shown)
    assert "<script" not in text
    assert "alert(1)" in page.text
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_no_comparison_hides_the_price(written: Any) -> None:
    assert "price" in written(result())[1].ids
    text, page = written(result() | {"accuracy_without_privacy": None, "history_without_privacy": None})
    assert "price" not in page.ids
    assert "without privacy" not in page.text
    assert text.count('class="line reference"') == 0


def test_price_is_said_in_points_and_records(written: Any) -> None:
    _, page = written(result())
    assert "5.0 points of accuracy" in page.text
    assert "9 more right answers on 180 held-out records" in page.text


def test_better_private_run_is_called_chance(written: Any) -> None:
    _, page = written(result() | {"accuracy_without_privacy": 0.90})
    assert "The difference is most likely chance" in page.text
    assert "-" not in re.findall(r"(\S+) points below", page.text)[0]


def test_held_out_accuracy_and_labels_are_called_the_simulators_view(written: Any) -> None:
    _, page = written(result())
    assert "held out; simulator's view, not a release" in page.text
    assert "Simulator's view: a real federation never sees this" in page.text


def test_task_without_classes_has_no_heat_map(written: Any) -> None:
    shown = result() | {"classes": None}
    for entry in shown["nodes"]:
        entry["labels"] = None
    assert "labels" in written(result())[1].ids
    assert "labels" not in written(shown)[1].ids


def test_refused_node_is_told_with_its_reason(written: Any) -> None:
    shown = result()
    shown["nodes"][2] |= {"state": "refused", "reason": "policy rule office-hours forbids", "epsilon": None}
    shown["nodes"][2] |= {"epsilon_executed": None, "rounds_answered": 0}
    _, page = written(shown)
    assert "Four institutions were asked to train digits: three finished, one refused." in page.text
    assert "policy rule office-hours forbids" in page.text
    assert "nothing charged" in page.text


def test_interrupted_run_says_where_it_stopped(written: Any) -> None:
    shown = result() | {"interrupted": True}
    shown["history"] = shown["history"][:4]
    assert "The run was interrupted after round 3 of 6." in written(shown)[1].text


@pytest.mark.parametrize(("nodes", "rounds"), [(1, 1), (16, 3), (17, 3), (200, 1000)])
def test_every_drawing_is_finite_and_inside_its_box(nodes: int, rounds: int, written: Any) -> None:
    shown = result(nodes, rounds)
    shown["history"][0]["loss"] = math.nan
    shown["history"][1]["loss"] = math.inf
    shown["loss"] = math.nan
    text, page = written(shown)
    assert re.search(r"\b(nan|NaN|inf|Infinity|None)\b", text) is None
    assert_inside(page)


def assert_inside(page: Page) -> None:
    width = height = 0.0
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert set(str(attributes["aria-labelledby"]).split()) <= page.ids
            width, height = map(float, str(attributes["viewbox"]).split()[2:])
        across = [attributes[key] for key in ("x", "x1", "x2", "cx") if key in attributes]
        down = [attributes[key] for key in ("y", "y1", "y2", "cy") if key in attributes]
        for point in str(attributes.get("points", "")).split():
            across.append(point.split(",")[0])
            down.append(point.split(",")[1])
        assert all(0 <= float(str(x)) <= width for x in across)
        assert all(0 <= float(str(y)) <= height for y in down)


def test_many_nodes_are_summed_up_after_forty(written: Any) -> None:
    shown = result(nodes=200)
    shown["nodes"][150] |= {"state": "failed", "reason": "lost its link"}
    _, page = written(shown)
    assert "node-38" in page.text
    assert "node-41" not in page.text
    assert "node-150 failed: lost its link" in page.text
    assert "and 160 more, which finished, with 25,920 declared records" in page.text
    assert "mean of 160 others" in page.text
    assert "200 institutions, lowest executed first" in page.text


def test_long_history_is_thinned_in_the_table_and_keeps_its_end(written: Any) -> None:
    text, page = written(result(rounds=1000))
    rows = re.findall(r'<th scope="row">(\d+)</th>', text)
    assert len(rows) <= 102
    assert rows[-1] == "1000"
    assert "result.json holds them all" in page.text


def test_bound_below_the_charge_is_not_hidden(written: Any) -> None:
    assert "the two agree" in written(result())[1].text
    assert "do not rely on this claim" in written(result() | {"epsilon_rdp_bound": 2.5})[1].text


def test_best_guess_is_that_of_differential_privacy(written: Any) -> None:
    """At epsilon ln 3 the best test is right three times in four (Wasserman and Zhou, 2010); rounded up."""
    _, page = written(result() | {"epsilon": math.log(3), "delta": 1e-12})
    assert "correctly at most 75.1% of the time" in page.text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (0, 1e-9), (-3, 7), (5, 5), (0, 1e300), (0.2, 0.21)])
def test_ticks_enclose_what_they_measure(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert len(marks) <= 8
    assert marks == sorted(set(marks)) or low == high


def test_chart_of_nothing_is_empty() -> None:
    caption = Caption("key", "title", "description")
    assert line_chart(caption, [Series("private", [(0.0, math.nan)])], str) == ""


def test_drawings_escape_what_they_are_given() -> None:
    caption = Caption("key", HOSTILE, HOSTILE)
    bars = [Bar(HOSTILE, 1.0, None), Bar(HOSTILE, None, 0.5)]
    line = line_chart(caption, [Series("private", [(0, 1), (1, 2)])], lambda value: HOSTILE)
    for drawing in (line, named_bars(caption, bars), column_strip(caption, bars), waffle(caption, 1, 2)):
        assert "<script" not in drawing


def test_labels_of_meeting_lines_do_not_overlap() -> None:
    lines = [Series(kind, [(0, 0.1), (5, value)]) for kind, value in (("private", 0.9), ("reference", 0.9001))]
    drawing = line_chart(Caption("key", "title", "description"), lines, str)
    heights = [float(y) for y in re.findall(r'class="start value[^>]*y="([\d.]+)"', drawing)]
    assert abs(heights[0] - heights[1]) >= 14


def with_faults(shown: dict[str, Any]) -> dict[str, Any]:
    """Every node was not reached once, and the first one lied in every round."""
    asked = {"drop": 0.1, "delay": 0.0, "nan": 0.0, "flip_signs": 0.2, "scale": 0.0, "scale_factor": 10.0}
    shown |= {"faults": asked, "strategy": "fedmedian"}
    for place, entry in enumerate(shown["nodes"]):
        entry["faults"] = {"drop": 1} | ({"flip-signs": shown["rounds"]} if place == 0 else {})
    for entry in shown["history"][1:]:
        entry["faults"] = {"flip-signs": 1} | ({"drop": len(shown["nodes"])} if entry["round"] == 1 else {})
    return shown


def compared(accuracy: float, rounds: int = 6) -> list[dict[str, Any]]:
    return [{"round": n, "accuracy": accuracy * n / rounds, "loss": 1.0} for n in range(rounds + 1)]


def test_report_says_who_misbehaved_and_how_often(written: Any) -> None:
    text, page = written(with_faults(result()))
    assert "One institution sent the opposite of what was trained." in page.text
    assert "its ledger says what it did" in page.text
    section = text.split('<section id="faults">')[1].split("</section>")[0]
    assert re.findall(r"<td>([^<]*)</td>", section)[-2:] == ["4", "6"], "the totals"
    assert "<svg" not in section, "nothing was compared"


def test_report_shows_strategies_against_the_same_faults(written: Any) -> None:
    histories = {"history_without_faults": compared(0.95), "history_under_fedavg": compared(0.2, rounds=3)}
    accuracies = {"accuracy_without_faults": 0.95, "accuracy_under_fedavg": 0.2}
    ended = {"comparisons_ended": {"under-fedavg": f"3 nodes answer in round 4 {HOSTILE}"}}
    text, page = written(with_faults(result()) | histories | accuracies | ended)
    section = text.split('<section id="faults">')[1].split("</section>")[0]
    assert all(f'class="line {kind}"' in section for kind in ("private", "reference", "undefended"))
    assert "fedmedian, no faults95.0%fedavg, these faults20.0%" in re.sub(r"\s*<[^>]*>\s*", "", section)
    assert "under fedavg: ended before its last round, 3 nodes answer in round 4" in page.text
    assert HOSTILE not in text


def test_report_names_as_many_faulty_nodes_as_a_person_reads(written: Any) -> None:
    text, _ = written(with_faults(result(nodes=60)))
    section = text.split('<section id="faults">')[1].split("</section>")[0]
    assert section.count('<th scope="row">node-') == 40
    assert "and 20 more; result.json names them all" in section


def test_report_has_no_word_of_faults_where_none_were_asked_for(written: Any) -> None:
    text, _ = written(result())
    assert 'id="faults"' not in text
