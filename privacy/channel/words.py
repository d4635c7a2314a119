"""The names by which server and node speak through Flower messages; both sides read them here.

query.describe   -> config: name, declared-size
query.initial    -> arrays
train            -> arrays, metrics: declared-size
evaluate         -> metrics: declared-size and, by name, the sum of each metric over records
anything refused -> Error(REFUSED, one code of the closed list)
"""

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"

DESCRIBE = "query.describe"
INITIAL = "query.initial"
TRAIN = "train"
EVALUATE = "evaluate"

SUBMISSION = "submission"
ROUND = "round"
ATTEMPT = "attempt"

NAME = "name"
DECLARED_SIZE = "declared-size"

# Flower reserves small numbers for itself.
REFUSED = 1000
