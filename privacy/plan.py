"""Plan: what an operator asks for, and the rules by which it can be meant.

Everything that the privacy claim depends on is a public constant here or declared by the node: never a value computed
from records. A plan knows nothing of files (`plan_file.py`), of who asks (`submission.py`), or of how it is carried
out. Keys are spelled in kebab-case; an unknown key is an error. One plan, one meaning: the same plan always hashes
alike.
"""

import math
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from .plan_central import central_problems
from .plan_strategies import KEEPING_STRATEGIES, strategy_problems

# Limits of a plan. They bound what a node can be asked to compute, and keep integers exact in canonical JSON (2^53).
LARGEST_INTEGER = 2**53 - 1
MOST_ROUNDS = 100_000
MOST_STEPS = 100_000
MOST_NODES = 100_000
MOST_OPTIONS = 64
LONGEST_DEADLINE = 7 * 24 * 3600.0  # seconds that a round may wait for its answers
LONGEST_OPTION = 256  # characters
LARGEST_SCALE = 1e6  # of a faulty update; beyond it a model of float32 values overflows, which is another fault

# Limits of a claim, so that no plan can keep an accountant busy for hours. Outside these it is a mistake: with less
# noise epsilon is in the hundreds, with more the model is pure noise; an epsilon above the largest protects nobody.
SMALLEST_NOISE, LARGEST_NOISE = 0.05, 1e6
LARGEST_EPSILON = 100.0
SMALLEST_DELTA = 1e-12  # the accountant cuts tails of 1e-15: near them its epsilon is loose, below them infinite
MOST_NOISY_STEPS = 1_000_000  # of one node; their accounting takes a few seconds
LARGEST_CLIP_LEARNING_RATE = 5.0  # a clip norm changes by a factor of e^5 at most, for each bit too many
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

# What a faulty node of a simulation sends instead of its update.
Lie = Literal["nan", "flip-signs", "scale"]

# The entry points under which tasks are installed: a plan names one of them.
TASK_GROUP = "privet.tasks"

# What protects each unit.
MECHANISMS: dict[str, Literal["local", "central"]] = {"record": "local", "node": "central"}

Name = Annotated[StrictStr, Field(pattern=NAME_PATTERN)]
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[StrictFloat, Field(gt=0, le=1)]
Chance = Annotated[StrictFloat, Field(ge=0, le=1)]
Momentum = Annotated[StrictFloat, Field(ge=0, lt=1)]
NoiseMultiplier = Annotated[StrictFloat, Field(ge=SMALLEST_NOISE, le=LARGEST_NOISE)]
Epsilon = Annotated[StrictFloat, Field(gt=0, le=LARGEST_EPSILON)]


def _option(value: object) -> object:
    """A flag, a number or a short text. Whole numbers become integers: canonical JSON does not tell 1.0 from 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and len(value) <= LONGEST_OPTION and value.isprintable():
        return value
    if isinstance(value, bool | int) and abs(value) <= LARGEST_INTEGER:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(
        f"an option is true or false, a number of at most {LARGEST_INTEGER}, "
        f"or one line of at most {LONGEST_OPTION} characters"
    )


OptionName = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
OptionValue = Annotated[StrictBool | StrictInt | StrictFloat | StrictStr, BeforeValidator(_option)]


class Section(BaseModel):
    """A table of the plan: frozen, strict, kebab-case."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=lambda name: name.replace("_", "-")
    )


class RunSection(Section):
    """What is trained, and for how long."""

    name: Name
    task: Name
    dataset: Name | None = None
    project: Name | None = None
    seed: Annotated[StrictInt, Field(ge=0, le=LARGEST_INTEGER)] = 0
    rounds: Annotated[StrictInt, Field(ge=1, le=MOST_ROUNDS)]
    spare_rounds: Annotated[StrictInt, Field(ge=0, le=MOST_ROUNDS)] = 0


class AggregationSection(Section):
    """How the server chooses nodes and joins their updates."""

    strategy: StrictStr = "fedavg"
    fraction: Share = 1.0
    min_nodes: Annotated[StrictInt, Field(ge=1, le=MOST_NODES)] = 2
    participations: Annotated[StrictInt, Field(ge=1, le=MOST_ROUNDS)] | None = None
    deadline: Annotated[StrictFloat, Field(gt=0, le=LONGEST_DEADLINE)] | None = None
    update_precision: Literal["float32", "bfloat16"] | None = None
    server_learning_rate: Positive | None = None
    server_momentum: Momentum | None = None
    beta_1: Momentum | None = None
    beta_2: Momentum | None = None
    tau: Positive | None = None
    proximal_mu: Positive | None = None
    malicious_nodes: Annotated[StrictInt, Field(ge=0, le=MOST_NODES)] | None = None
    selected_nodes: Annotated[StrictInt, Field(ge=1, le=MOST_NODES)] | None = None
    trimmed_fraction: Annotated[StrictFloat, Field(ge=0, lt=0.5)] | None = None


# Which key of [simulation] each partition reads, and needs.
PARTITION_KEYS: dict[str, tuple[str, ...]] = {
    "iid": (),
    "dirichlet": ("alpha",),
    "shards": ("shards_per_node",),
    "sizes": ("sizes",),
}


class TrainingSection(Section):
    """What a node does in a round."""

    local_steps: Annotated[StrictInt, Field(ge=1, le=MOST_STEPS)] = 1
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive
    momentum: Momentum = 0.0
    weight_decay: NotNegative = 0.0


class PrivacySection(Section):
    """Whose presence is hidden, by what, and how well.

    With unit `node` the server clips whole updates and adds the noise; `clip_norm` is then the first round's, and
    moves towards `target_quantile` of the updates' norms where that is given (plan_central.py).
    """

    unit: Literal["record", "group", "node", "none"]
    mechanism: Literal["local", "distributed", "central"] | None = None
    epsilon: Epsilon | None = None
    noise_multiplier: NoiseMultiplier | None = None
    delta: Annotated[StrictFloat, Field(ge=SMALLEST_DELTA, lt=1)] | None = None
    clip_norm: Positive | None = None
    sampling_rate: Share
    target_quantile: Annotated[StrictFloat, Field(gt=0, lt=1)] | None = None
    clip_learning_rate: Annotated[StrictFloat, Field(gt=0, le=LARGEST_CLIP_LEARNING_RATE)] | None = None
    count_noise_stddev: Annotated[StrictFloat, Field(gt=0, le=LARGEST_NOISE)] | None = None

    @property
    def is_private(self) -> bool:
        """Whether the plan makes a claim at all."""
        return self.unit != "none"

    @property
    def is_central(self) -> bool:
        """Whether the claim is the server's: it hides whole nodes, and nodes clip and noise no records."""
        return self.unit == "node"

    @property
    def hides_records(self) -> bool:
        """Whether each node clips and noises what its records give, step by step."""
        return self.is_private and not self.is_central

    @property
    def record_clip_norm(self) -> float | None:
        """To what a node clips each record's gradient; None where it does not."""
        return None if self.is_central else self.clip_norm


class EvaluationSection(Section):
    """Metrics on the nodes' own records: noised, charged with the rest. Without the section there are none."""

    every: Annotated[StrictInt, Field(ge=1, le=MOST_ROUNDS)] = 1
    metrics: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16, strict=False)] = ("accuracy",)
    noise_multiplier: NoiseMultiplier | None = None


class FaultsSection(Section):
    """Nodes that misbehave in a simulation. `drop`, `delay`: of the nodes that are asked; the others: of all nodes."""

    drop: Chance = 0.0
    delay: Chance = 0.0
    nan: Chance = 0.0
    flip_signs: Chance = 0.0
    scale: Chance = 0.0
    scale_factor: Annotated[StrictFloat, Field(ge=-LARGEST_SCALE, le=LARGEST_SCALE)] = 10.0

    @property
    def is_any(self) -> bool:
        """Whether anything may go wrong at all."""
        return self.drop > 0 or self.delay > 0 or self.is_lying

    @property
    def is_lying(self) -> bool:
        """Whether any node lies."""
        return self.nan > 0 or self.flip_signs > 0 or self.scale > 0

    def liars(self, nodes: int) -> dict[Lie, int]:
        """How many of so many nodes tell each kind of lie: the share of each, rounded up.

        >>> FaultsSection(**{"flip-signs": 0.15}).liars(10)
        {'nan': 0, 'flip-signs': 2, 'scale': 0}
        """
        shares: dict[Lie, float] = {"nan": self.nan, "flip-signs": self.flip_signs, "scale": self.scale}
        return {lie: math.ceil(Decimal(repr(share)) * nodes) for lie, share in shares.items()}


class SimulationSection(Section):
    """Read by `privet simulate` alone; never part of a submission."""

    nodes: Annotated[StrictInt, Field(ge=1, le=MOST_NODES)] = 10
    partition: Literal["iid", "dirichlet", "shards", "sizes"] = "iid"
    alpha: Positive | None = None
    shards_per_node: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    sizes: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] | None = None
    held_out: Annotated[StrictFloat, Field(gt=0, lt=1)] = 0.1
    path: StrictStr | None = None
    account_epsilon: Positive = 10.0
    account_delta: Annotated[StrictFloat, Field(gt=0, lt=1)] = 1e-4
    faults: FaultsSection | None = None


class Plan(BaseModel):
    """A validated plan. Its sections are the tables of the file; see DESIGN for what each key means."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: RunSection
    model: Annotated[dict[OptionName, OptionValue], Field(max_length=MOST_OPTIONS)] = {}
    aggregation: AggregationSection = AggregationSection()
    training: TrainingSection
    privacy: PrivacySection
    evaluation: EvaluationSection | None = None
    simulation: SimulationSection | None = None

    @model_validator(mode="after")
    def _can_be_meant(self) -> Self:
        problems = [
            *strategy_problems(self.aggregation.strategy, self.aggregation.model_dump(exclude_none=True)),
            *_training_problems(self),
            *_scaffold_problems(self),
            *_privacy_problems(self.privacy),
            *central_problems(self),
            *_evaluation_problems(self),
            *_partition_problems(self.simulation),
            *_fault_problems(self.simulation),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def dataset(self) -> str:
        """The data set's name at the nodes: by default the task's."""
        return self.run.dataset or self.run.task

    @property
    def attempts_charged(self) -> int:
        """How many training requests a node answers at most: rounds and spare rounds, or the public cap.

        With unit `node`: how many noised sums the server releases, one a round.
        """
        every_round = self.run.rounds + self.run.spare_rounds
        return min(every_round, self.aggregation.participations or every_round)

    @property
    def evaluations_charged(self) -> int:
        """How many evaluations a node answers at most."""
        return self.run.rounds // self.evaluation.every if self.evaluation else 0

    @property
    def keeps_updates(self) -> bool:
        """Whether the server holds all updates of a round in memory."""
        return self.aggregation.strategy in KEEPING_STRATEGIES


def _training_problems(plan: Plan) -> list[str]:
    problems, training = [], plan.training
    if training.optimizer == "adam" and training.momentum:
        problems.append("training.momentum: optimizer 'adam' does not read it")
    steps = plan.attempts_charged * training.local_steps
    if plan.privacy.is_private and not plan.privacy.is_central and steps > MOST_NOISY_STEPS:
        problems.append(f"training.local-steps: {steps} noisy steps at a node, accounted for are {MOST_NOISY_STEPS}")
    return problems


def _privacy_problems(privacy: PrivacySection) -> list[str]:
    claims = ("mechanism", "epsilon", "noise_multiplier", "delta", "clip_norm")
    if not privacy.is_private:
        stray = [key.replace("_", "-") for key in claims if getattr(privacy, key) is not None]
        return [f"privacy.{key}: unit 'none' makes no claim, so it may not be given" for key in stray]
    if privacy.unit == "group":
        return ["privacy.unit: 'group' is not built yet; this version protects 'record' or 'node', or makes no claim"]
    if privacy.mechanism == "distributed":
        return ["privacy.mechanism: 'distributed' is not built yet; this version has 'local' and 'central'"]
    mechanism = MECHANISMS[privacy.unit]
    if privacy.mechanism not in (None, mechanism):
        return [f"privacy.mechanism: {privacy.mechanism!r}; unit {privacy.unit!r} is protected by {mechanism!r}"]
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        count = "neither is" if privacy.epsilon is None else "both are"
        return [f"privacy.epsilon: exactly one of epsilon and noise-multiplier must be given; {count}"]
    missing = [key.replace("_", "-") for key in ("delta", "clip_norm") if getattr(privacy, key) is None]
    return [f"privacy.{key}: missing; a claim at unit {privacy.unit!r} needs it" for key in missing]


def _scaffold_problems(plan: Plan) -> list[str]:
    if plan.aggregation.strategy != "scaffold":
        return []
    if plan.privacy.is_private:
        return [
            f"privacy.unit: strategy 'scaffold' makes no claim here, so the unit is 'none', not {plan.privacy.unit!r}"
        ]
    if plan.training.optimizer != "sgd" or plan.training.momentum:
        return ["training.optimizer: strategy 'scaffold' corrects the steps of 'sgd' without momentum, and no others"]
    return []


def _evaluation_problems(plan: Plan) -> list[str]:
    if plan.evaluation is None:
        return []
    if plan.evaluation.every > plan.run.rounds:
        return [f"evaluation.every: {plan.evaluation.every}, but there are {plan.run.rounds} rounds: none is evaluated"]
    noised = plan.evaluation.noise_multiplier is not None
    if plan.privacy.is_private and not noised:
        return ["evaluation.noise-multiplier: missing; metrics on private records leave a node only with noise"]
    if not plan.privacy.is_private and noised:
        return ["evaluation.noise-multiplier: unit 'none' makes no claim, so it may not be given"]
    return []


def _partition_problems(simulation: SimulationSection | None) -> list[str]:
    if simulation is None:
        return []
    wanted = next(iter(PARTITION_KEYS[simulation.partition]), None)
    for key in (key for keys in PARTITION_KEYS.values() for key in keys):
        given, spelled = getattr(simulation, key) is not None, key.replace("_", "-")
        if given and key != wanted:
            return [f"simulation.{spelled}: partition {simulation.partition!r} does not read it"]
        if not given and key == wanted:
            return [f"simulation.{spelled}: missing; partition {simulation.partition!r} needs it"]
    if simulation.sizes is not None and len(simulation.sizes) != simulation.nodes:
        return [f"simulation.sizes: {len(simulation.sizes)} sizes for {simulation.nodes} nodes"]
    return []


def _fault_problems(simulation: SimulationSection | None) -> list[str]:
    if simulation is None or simulation.faults is None:
        return []
    faults, liars = simulation.faults, simulation.faults.liars(simulation.nodes)
    if Decimal(repr(faults.drop)) + Decimal(repr(faults.delay)) > 1:
        return [f"simulation.faults.delay: {faults.delay:g}, but {faults.drop:g} of the nodes are dropped already"]
    if sum(liars.values()) > simulation.nodes:
        told = " + ".join(f"{count} {lie}" for lie, count in liars.items() if count)
        return [f"simulation.faults: {told} are more nodes than the {simulation.nodes} that are simulated"]
    return []
