"""What is wrong with a policy is said once for each rule, with its line, and with what to write instead."""

import pytest
from policy_questions import rules_of
from privet.privacy.errors import PolicyError
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import schema_text
from privet.privacy.policy.source import places
from privet.privacy.policy.vocabulary import actions, covered, things

ALL = "principal, action, resource"
PARTICIPATE = 'principal, action in Action::"participate", resource'


def problems(rule: str) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        rules_of("// why", rule)
    return caught.value.problems


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (
            f"forbid ({ALL}) unless {{ context.plan.epsilon <= 3 }};",
            'context.plan is not there for 14 of the actions that it covers: write action in Action::"participate"',
        ),
        (
            f"forbid ({PARTICIPATE}) unless {{ context.cohort.parties > 3 }};",
            'context.cohort is not there for admit: write action in [Action::"train", Action::"evaluate", '
            'Action::"releaseUpdate", Action::"releaseMetric"]',
        ),
        (
            f"permit ({PARTICIPATE}) when {{ context.plan.epsilonn < 3 }};",
            "Plan has no attribute epsilonn; did you mean epsilon?",
        ),
        (
            f"permit ({PARTICIPATE}) when {{ context.pla.epsilon < 3 }};",
            "context.pla is not there for 5 of the actions that it covers; did you mean plan?",
        ),
        (
            'permit (principal == Operater::"a", action, resource);',
            "there is no type Operater; did you mean Operator?",
        ),
        ('permit (principal, action == Action::"admitt", resource);', "there is no action admitt; did you mean admit?"),
        (
            'permit (principal is Operator, action == Action::"joinRun", resource);',
            "no such action is asked by such a principal of such a resource: see the schema's `appliesTo`",
        ),
        (f"permit ({ALL}) when {{ x }};", "invalid variable: x"),
    ],
)
def test_one_line_says_what_to_write(rule: str, told: str) -> None:
    assert problems(f'@id("a") {rule}') == (f"line 2: rule a: {told}",)


def test_rules_without_a_name_are_told_by_their_line() -> None:
    assert problems(f"permit ({ALL});")[0].startswith("line 2: the rule needs an @id")
    assert problems(f'@id("a") permit ({ALL}); @id("a") permit ({ALL});') == (
        'line 2: another rule has @id("a") already',
    )


def test_actions_and_things_are_those_of_the_schema() -> None:
    """The schema is read twice, by Cedar and here: every word that is found here stands in it, and none is missed."""
    assert len(actions()) == schema_text().count("appliesTo") + 3 + 2 + 1 + 1, "some are declared together"
    assert actions()["train"].groups == {"participate"}
    assert {"plan", "cohort", "round"} <= actions()["train"].context
    assert "cohort" not in actions()["admit"].context
    assert {"epsilon", "expires", "metrics"} <= things()["Plan"]
    assert things()["Operator"] == {"key", "isPinned"}
    assert covered({"action": {"op": "All"}}) == set(actions())


def test_places_are_those_of_the_rules() -> None:
    for side in ("node", "server"):
        text = default_policy(side)  # type: ignore[arg-type]  # the two there are
        assert [place.id for place in places(text)] == [rule.id for rule in rules_of(text).rules]
    strings = '// a "; comment\n@id("a")\npermit (principal, action, resource)\nwhen { "x;\\"//" == "" }; // after\n'
    (place,) = places(strings)
    assert (place.id, place.line) == ("a", 2)
    assert strings[place.start : place.end].startswith("// a")
    assert strings[place.start : place.end].endswith("};")
