import tomllib
from collections.abc import Callable
from pathlib import Path

import privet.simulations
import pytest
import tomli_w
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from privet.privacy.errors import PlanError
from privet.privacy.plan import Plan
from privet.privacy.plan_file import PLAN_BYTES, parse_plan, plan_text, read_plan
from privet.privacy.plan_template import plan_template

TEXT = """\
[run]
name = "a"
task = "digits"
rounds = 3

[training]
learning-rate = 1.0

[privacy]
unit = "none"
sampling-rate = 0.5
"""


def problems_of(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "plan.toml", overrides)
    assert caught.value.remedy
    return caught.value.problems


def test_a_plan_reads() -> None:
    plan = parse_plan(TEXT, "plan.toml")
    assert (plan.run.name, plan.run.rounds, plan.training.learning_rate) == ("a", 3, 1.0)


@pytest.mark.parametrize(
    ("was", "becomes", "problem"),
    [
        ("rounds = 3", "ronds = 3", "plan.toml:4: run.ronds: unknown key; did you mean rounds?"),
        ("[privacy]", "[privcy]", "plan.toml:9: privcy: unknown section; did you mean privacy?"),
        ("rounds = 3", "rounds = 0", "plan.toml:4: run.rounds: input should be greater than or equal to 1, got 0"),
        ("rounds = 3", "", "plan.toml:1: run.rounds: missing"),
        ('unit = "none"', 'unit = "patient"', "plan.toml:10: privacy.unit: input should be 'record', 'group', 'node'"),
        ('task = "digits"', "task = 7", "plan.toml:3: run.task: input should be a valid string, got 7"),
        ('unit = "none"', 'unit = "group"', "plan.toml:10: privacy.unit: 'group' is not built yet"),
        (
            "rounds = 3",
            "rounds = 3\nspare_rounds = 1",
            "plan.toml:5: run.spare_rounds: unknown key; did you mean spare",
        ),
        ("rounds = 3", "rounds = 3\nzzz = 1", "plan.toml:5: run.zzz: unknown key; known: dataset, name, project,"),
        ("[training]", "[[training]]", "plan.toml:6: training: input should be a valid dictionary or instance of"),
        ("rounds = 3", 'rounds = 3\n"näme\u2028" = 1 # \u2028', "plan.toml:5: run.näme\u2028: unknown key"),
    ],
)
def test_a_problem_is_told_with_line_and_nearest_key_or_range(was: str, becomes: str, problem: str) -> None:
    assert problems_of(TEXT.replace(was, becomes))[0].startswith(problem)


def test_lines_are_counted_as_toml_counts_them() -> None:
    """U+2028 and U+0085 may stand in comments, and end a line for Python only."""
    (problem,) = problems_of("# one\u2028two\u0085three\n" + TEXT.replace("rounds = 3", "rounds = 0"))
    assert problem.startswith("plan.toml:5: run.rounds")


def test_an_unknown_section_is_told_before_the_one_that_is_missing() -> None:
    first, second = problems_of(TEXT.replace("[training]", "[trainig]"))
    assert "trainig: unknown section; did you mean training?" in first
    assert second == "plan.toml: training: missing"


@pytest.mark.parametrize(
    "text",
    [
        "run = ",
        "a = " + "[" * 5000,
        "a = " + "{b = " * 5000,
        "a = " + "1" * 5000,
        "[run]\n[run]\n",
        "\x00",
        "a = 2026-13-01",
    ],
)
def test_text_that_toml_cannot_read_is_refused(text: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith("plan.toml: not TOML: ")


def test_a_long_value_does_not_fill_the_screen() -> None:
    assert all(len(problem) < 300 for problem in problems_of(TEXT.replace('"digits"', '"' + "A" * 10_000 + '"')))
    assert all(len(problem) < 300 for problem in problems_of(TEXT.replace("rounds = 3", f"rounds = {[1] * 9999}")))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run.rounds", "--set run.rounds: not of the form section.key=value"),
        ("rounds=3", "--set rounds=3: not of the form section.key=value"),
        ("a.b.c=3", "--set a.b.c=3: not of the form section.key=value"),
        (".b=3", "--set .b=3: not of the form section.key=value"),
        ("", "--set : not of the form section.key=value"),
        ("run.rounds=0", "--set: run.rounds: input should be greater than or equal to 1, got 0"),
        ("run.ronds=1", "--set: run.ronds: unknown key; did you mean rounds?"),
        ("rum.rounds=1", "plan.toml: rum: unknown section; did you mean run?"),
    ],
)
def test_an_override_that_cannot_be_meant_is_named(override: str, problem: str) -> None:
    assert problems_of(TEXT, override)[0].startswith(problem)


def test_an_override_of_what_is_not_a_section_is_refused() -> None:
    (problem,) = problems_of("run = 3\n", "run.rounds=4")
    assert problem == "--set run.rounds=4: run is not a section"


def test_overrides_are_read_as_toml_and_else_as_text() -> None:
    plan = parse_plan(TEXT, "p", ["run.task=breast-cancer", "run.rounds = 7", 'run.name="b"', "run.seed=0x10"])
    assert (plan.run.task, plan.run.rounds, plan.run.name, plan.run.seed) == ("breast-cancer", 7, "b", 16)


def test_an_override_is_one_value_and_not_a_piece_of_toml() -> None:
    (problem,) = problems_of(TEXT, "run.rounds=7\nother = 1")
    assert "run.rounds: input should be a valid integer, got '7" in problem


def test_an_empty_override_takes_the_key_out() -> None:
    assert parse_plan(TEXT.replace("rounds = 3", "rounds = 3\nseed = 9"), "p", ["run.seed="]).run.seed == 0
    assert problems_of(TEXT, "run.rounds=") == ("--set: run.rounds: missing",)


@pytest.mark.parametrize("value", ["[" * 3000, "1" * 5000, "{a=" * 3000])
def test_a_hostile_override_is_text(value: str) -> None:
    assert problems_of(TEXT, f"run.seed={value}")[0].startswith("--set: run.seed: input should be a valid integer")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(PlanError, match="cannot be read") as caught:
            read_plan(path)
        assert caught.value.remedy == "privet plan new PLAN writes a commented plan"


def test_a_file_larger_than_a_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(TEXT + "#" * (PLAN_BYTES - len(TEXT)))
    assert read_plan(path) == parse_plan(TEXT, "p")
    path.write_text(TEXT + "#" * (PLAN_BYTES - len(TEXT) + 1))
    with pytest.raises(PlanError, match="larger than 65536 bytes"):
        read_plan(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(b"\xff\xfe" + TEXT.encode("utf-16-le"))
    with pytest.raises(PlanError, match="it is not UTF-8 text"):
        read_plan(path)


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_plans_that_ship_read_and_round_trip(name: str) -> None:
    plan = read_plan(Path(privet.simulations.__file__).parent / "plans" / f"{name}.toml")
    assert parse_plan(plan_text(plan), "again") == plan


def test_the_template_is_a_plan_also_with_all_its_optional_lines() -> None:
    text = plan_template("mine", "digits")
    assert parse_plan(text, "template").run.name == "mine"
    optional = [line.removeprefix("# ") for line in text.splitlines()]
    lines = [line for line in optional[4:] if "alpha = " not in line and not line.startswith(" ")]
    assert parse_plan("\n".join(lines), "uncommented").evaluation is not None


FLOATS = st.floats(1e-6, 1.0, exclude_max=True)
OPTIONS = st.one_of(
    st.booleans(),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.floats(-1e15, 1e15),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.integers(1, 100_000),
    seed=st.integers(0, 2**53 - 1),
    rate=FLOATS,
    momentum=FLOATS,
    learning=st.floats(1e-30, 1e30),
    model=st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True), OPTIONS, max_size=5),
    sizes=st.none() | st.lists(st.floats(0.1, 9), min_size=1, max_size=4),
)
def test_any_plan_round_trips_through_its_text(
    rounds: int,
    seed: int,
    rate: float,
    momentum: float,
    learning: float,
    model: dict[str, object],
    sizes: list[float] | None,
) -> None:
    table: dict[str, dict[str, object]] = {
        "run": {"name": "a", "task": "t", "rounds": rounds, "seed": seed},
        "model": model,
        "training": {"learning-rate": learning, "momentum": momentum},
        "privacy": {"unit": "none", "sampling-rate": rate},
        "evaluation": {"metrics": ["accuracy", "auc"]},
    }
    if sizes:
        table["simulation"] = {"partition": "sizes", "sizes": sizes, "nodes": len(sizes)}
    plan = parse_plan(tomli_w.dumps(table), "generated")
    again = parse_plan(plan_text(plan), "again")
    assert again == plan
    assert {key: type(value) for key, value in again.model.items()} == {k: type(v) for k, v in plan.model.items()}


def problems_or_none(text: str, overrides: list[str] | None = None) -> tuple[str, ...] | None:
    """None for a plan; anything raised but PlanError fails the test."""
    try:
        parse_plan(text, "random", overrides or [])
    except PlanError as error:
        return error.problems
    return None


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(st.characters(codec="utf-8"), max_size=12),
        st.dates(),
        st.datetimes(),
        st.times(),
        st.sampled_from(["record", "none", "fedavg", "krum", "digits", "sgd", "dirichlet"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = {
    section: [field.alias or name for name, field in model.model_fields.items()]
    for section, model in (
        (name, getattr(field.annotation, "__args__", (field.annotation,))[0])
        for name, field in Plan.model_fields.items()
        if name != "model"
    )
}
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "model": VALUES,
        "zzz": VALUES,
        **{
            section: st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), VALUES, max_size=6) | VALUES
            for section, keys in KEYS.items()
        },
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SECTIONS, st.lists(st.text(max_size=20) | st.just("run.rounds=3"), max_size=2))
@example({"run": {"name": ""}}, [])
def test_any_toml_is_a_plan_or_a_plan_error(sections: dict[str, object], overrides: list[str]) -> None:
    try:
        text = tomli_w.dumps(sections)
    except UnicodeEncodeError:
        return
    problems = problems_or_none(text, overrides)
    assert problems is None or (problems and all(problems))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([(s, k) for s, keys in KEYS.items() for k in keys]), VALUES)
def test_any_value_of_any_key_is_accepted_or_named(place: tuple[str, str], value: object) -> None:
    """One key of a valid plan gets any TOML value at all."""
    section, key = place
    text = TEXT + '[aggregation]\n[evaluation]\n[simulation]\npartition = "iid"\n'
    table = tomllib.loads(text)
    table[section][key] = value
    problems = problems_or_none(tomli_w.dumps(table))
    assert problems is None or any(f"{section}." in problem for problem in problems)


def test_make_plan_and_text_agree(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan("evaluation.every=2", "evaluation.noise-multiplier=20", private=True)
    assert parse_plan(plan_text(plan), "again") == plan
