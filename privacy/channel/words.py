"""The names by which server and node speak through Flower messages; both sides read them here.

    query.describe   -> config: name, declared-size
    query.initial    -> arrays
    train            -> arrays, metrics: declared-size
    evaluate         -> metrics: declared-size and, by name, the sum of each metric over records
    query.witness    -> nothing: it brings the server's countersignature of a ledger's head
    anything refused -> Error(REFUSED, one code of the closed list; after `DISCLOSED`, what the institution tells)

With every request for a run come, in its config: submission, round, attempt; in a deployment also signature and
certificates, of the operator over the submission. The answer to `query.describe` then brings signature and
certificates of the node, that it takes part; with `train` and `evaluate` comes `cohort`, which is those of the nodes
that are asked (privacy/attendance.py).

With `train` and `evaluate` comes `ledger`: the head of the node's ledger, and the charges not yet witnessed; unless
the request says `no-head`, as most of a simulation's do.

Where whole nodes are hidden, the request to train brings `clip-norm` in its config. The answer brings `within` among
its metrics, 1 where the update was within that norm before it was clipped, else 0; and no ledger, as nodes have none.
"""

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
LEDGER = "ledger"
CONTROL = "control"  # arrays, beside the model: the server's control variate, in a simulation of SCAFFOLD

DESCRIBE = "query.describe"
INITIAL = "query.initial"
WITNESS = "query.witness"
TRAIN = "train"
EVALUATE = "evaluate"

SUBMISSION = "submission"
SIGNATURE = "signature"
CERTIFICATES = "certificates"
SEAL = "privet"  # the record that brings these with a message of an app
BEGUN = "begun"  # in it: another text whenever the run begins, so that an app begins anew at the nodes too
ROUND = "round"
ATTEMPT = "attempt"
COHORT = "cohort"
WITNESSED = "witnessed"
HEAD = "head"
NO_HEAD = "no-head"
CHARGES = "charges"

NAME = "name"
DECLARED_SIZE = "declared-size"
CLIP_NORM = "clip-norm"
WITHIN = "within"

# Flower reserves small numbers for itself.
REFUSED = 1000
DISCLOSED = ": "
LONGEST_DISCLOSED = 300  # characters
# What the server itself puts in the place of an answer.
LOST = 1001  # none will come: the node went away
DISCONNECTED = "disconnected"
CONTRADICTS = 1002  # the ledger's head contradicts what was witnessed
LEDGER_CONTRADICTS = "ledger-contradicts"
EXPIRED = 4  # the number is Flower's own: the message's time to live ended without an answer
NO_ANSWER = "no-answer"
# What a node says where no answer could be made or sent; the number is Flower's own for an app that raised.
APP_RAISED = 2
APP_FAILED = "app-failed"
