"""The strategies that a plan may name, and the keys of `[aggregation]` that each reads.

A key that a strategy does not read is an error, since it would silently do nothing.
"""

import difflib
from collections.abc import Container

# Strategies of flwr.serverapp.strategy, by the plan's name. Streaming: a running average, one model in memory.
STREAMING_STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
# These compare updates with each other, so that all of a round's are kept in memory.
KEEPING_STRATEGIES = ("krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg")
# privet's own; it streams too.
OWN_STRATEGIES = ("scaffold",)
REFUSED_STRATEGIES = {
    "qfedavg": "it weighs each node by its training loss, which is computed from records and not released",
    "fedxgbbagging": "it aggregates trees, and a task here is a torch module",
    "fedxgbcyclic": "it hands trees from node to node, and a task here is a torch module",
    "dp-fixed-clipping": 'unit = "node" does it, with the noise that its claim needs, and a ledger',
    "dp-adaptive-clipping": 'unit = "node" does it, with the noise that its claim needs, and a ledger',
}


# Which keys of [aggregation] each strategy reads: any other is an error, since it would silently do nothing.
STRATEGY_KEYS: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedprox": ("proximal_mu",),
    "fedavgm": ("server_learning_rate", "server_momentum"),
    "fedadagrad": ("server_learning_rate", "tau"),
    "fedadam": ("server_learning_rate", "beta_1", "beta_2", "tau"),
    "fedyogi": ("server_learning_rate", "beta_1", "beta_2", "tau"),
    "krum": ("malicious_nodes",),
    "multikrum": ("malicious_nodes", "selected_nodes"),
    "bulyan": ("malicious_nodes",),
    "fedmedian": (),
    "fedtrimmedavg": ("trimmed_fraction",),
    "scaffold": ("server_learning_rate",),
}
# Without these a strategy would silently be plain averaging.
REQUIRED_STRATEGY_KEYS: dict[str, tuple[str, ...]] = {
    "fedprox": ("proximal_mu",),
    "fedavgm": ("server_momentum",),
    "krum": ("malicious_nodes",),
    "multikrum": ("malicious_nodes", "selected_nodes"),
    "bulyan": ("malicious_nodes",),
    "fedtrimmedavg": ("trimmed_fraction",),
}


def strategy_problems(name: str, given: Container[str]) -> list[str]:
    """What is wrong with a strategy's name and the keys that are given with it, a line each."""
    if name in REFUSED_STRATEGIES:
        return [f"aggregation.strategy: {name!r} is not offered: {REFUSED_STRATEGIES[name]}"]
    if name not in STRATEGY_KEYS:
        nearest = difflib.get_close_matches(name.lower(), STRATEGY_KEYS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(STRATEGY_KEYS)}"
        return [f"aggregation.strategy: unknown strategy {name!r}; {hint}"]
    every_key = {key for keys in STRATEGY_KEYS.values() for key in keys}
    unread = [key for key in sorted(every_key - set(STRATEGY_KEYS[name])) if key in given]
    missing = [key for key in REQUIRED_STRATEGY_KEYS.get(name, ()) if key not in given]
    return [
        *(f"aggregation.{key.replace('_', '-')}: strategy {name!r} does not read it" for key in unread),
        *(f"aggregation.{key.replace('_', '-')}: missing; strategy {name!r} needs it" for key in missing),
    ]
