"""The examples in docstrings are run here: pytest's own --doctest-modules would import a second copy of each module."""

import doctest
import importlib
from pathlib import Path

import privet

# When examples are taken away on purpose, this goes down with them.
FEWEST_EXAMPLES = 6

ROOT = Path(privet.__file__).parent


def test_examples_in_docstrings_hold() -> None:
    run = 0
    for folder in ("privacy", "client", "server", "simulations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                name = ".".join(("privet", *path.relative_to(ROOT).with_suffix("").parts))
                result = doctest.testmod(importlib.import_module(name))
                assert result.failed == 0, name
                run += result.attempted
    assert run >= FEWEST_EXAMPLES
