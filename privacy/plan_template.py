"""The commented plan that `privet plan new` writes."""

TEMPLATE = """\
# A plan: what is trained, how, and what it may cost in privacy. Every number here is public.
# privet plan check FILE    says what is wrong with it
# privet plan show FILE     says what it will cost in epsilon, before it runs
# privet simulate FILE      runs it over simulated institutions

[run]
name = "{name}"
task = "{task}"            # installed at the nodes (privet tasks); code never travels
# dataset = "{task}"       # the nodes' name for the data; default: the task's
seed = 7                   # public: the initial weights, and who holds what in a simulation; never noise
rounds = 20
spare-rounds = 2           # charged with the rest, used when an attempt is lost

# [model]                  # options of the task: privet tasks {task}
# kind = "linear"

[aggregation]
strategy = "fedavg"        # fedavg fedprox fedavgm fedadagrad fedadam fedyogi; or, keeping all updates of a round in
                           # memory, krum multikrum bulyan fedmedian fedtrimmedavg; scaffold, in simulations
fraction = 1.0             # of the nodes, in each round
min-nodes = 2              # fewer answers than this end the run
# participations = 10      # public cap on a node's rounds (where fraction is below 1): all that it is charged for

[training]
local-steps = 5            # at each node, in each round
optimizer = "sgd"          # sgd | adam
learning-rate = 1.0
# momentum = 0.0
# weight-decay = 0.0

[privacy]
unit = "record"            # whose presence is hidden: record, or none (no claim; then only sampling-rate stays here)
mechanism = "local"        # each update is private by itself, before the server sees it
epsilon = 3.0              # for the whole run at each node; or noise-multiplier, exactly one of the two
delta = 1e-5               # well below one over the number of records of any node
clip-norm = 1.0            # the most that one record's gradient may weigh (L2)
sampling-rate = 0.2        # Poisson: each record takes part in a step with this chance

# [evaluation]             # metrics on the nodes' own records: noised, and inside the same epsilon
# every = 5                # rounds
# metrics = ["accuracy"]
# noise-multiplier = 20.0

[simulation]               # read by privet simulate alone
nodes = 10
partition = "iid"          # iid | dirichlet (alpha) | shards (shards-per-node) | sizes (sizes)
# alpha = 0.3
held-out = 0.1             # of the records: owned by no node, to see how good the model is

# [simulation.faults]      # shares of the nodes that misbehave
# drop = 0.1               # of those asked in a round: not reached
# delay = 0.05             # of those asked in a round: too late
# nan = 0.0                # of all nodes, in every round, as the next two: send NaN
# flip-signs = 0.2         # send the opposite of what they trained
# scale = 0.0              # send scale-factor times what they trained
# scale-factor = 10.0
"""


def plan_template(name: str, task: str) -> str:
    """The template for a plan of this name and task."""
    return TEMPLATE.format(name=name, task=task)
