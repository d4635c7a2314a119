"""Policies that are nested so deeply that Cedar's reader would end the process: refused before it sees them."""

import pytest
from privet.privacy.errors import PolicyError
from privet.privacy.policy.depth import MOST_NESTED, MOST_WORDS, problem_of_depth
from privet.privacy.policy.rules import END, Rules

# What is repeated -> a condition of that many repetitions; each of them, repeated often enough, ends a process.
DEEP = {
    "brackets": lambda n: "(" * n + "true" + ")" * n,
    "lists": lambda n: "[" * n + "1" + "]" * n + " == 1",
    "records": lambda n: "{a:" * n + "1" + "}" * n + " == 1",
    "conditions": lambda n: "if true then " * n + "true" + " else true" * n,
    "conjunctions": lambda n: "true" + " && true" * n,
    "attributes": lambda n: "context" + ".a" * n + " == 1",
    "sums": lambda n: "1" + "+1" * n + " == 1",
    "brackets after what looks like an end": lambda n: '";" == "//" && ' + "(" * n + "true" + ")" * n,
}


@pytest.mark.parametrize("times", [600, 1_900, 20_000])
@pytest.mark.parametrize("kind", DEEP)
def test_deep_policy_is_refused(kind: str, times: int) -> None:
    with pytest.raises(PolicyError, match=r"nested|words and signs"):
        Rules(f'@id("a") permit (principal, action, resource) when {{ {DEEP[kind](times)} }};\n{END}\n')


def test_what_a_person_writes_is_not_deep() -> None:
    rule = '@id("a{n}") permit (principal, action, resource) when {{ ((1 == 1) || (2 == 2)) && [1, 2].contains(1) }};\n'
    text = "".join(rule.replace("{n}", str(n)).replace("{{", "{").replace("}}", "}") for n in range(500))
    assert problem_of_depth(text) is None
    assert problem_of_depth("(" * MOST_NESTED) is None
    assert problem_of_depth("a " * MOST_WORDS) is None
    assert problem_of_depth('"' + "(" * 200 + '"; // ' + "(" * 200) is None
