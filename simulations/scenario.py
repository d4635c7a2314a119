"""A simulated federation: a plan's world, its nodes, the Grid between them, and the run itself."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from ..client.app import client_app
from ..client.bench import Bench
from ..client.node import Node, Workshop
from ..client.participant import Participant
from ..client.tasks.registry import load_task
from ..privacy.alone import only_one
from ..privacy.budget.guard import Standing
from ..privacy.budget.own_signatures import OwnSignatures
from ..privacy.channel.files import write_whole
from ..privacy.errors import UsageError
from ..privacy.plan import Plan
from ..privacy.plan_file import plan_text
from ..privacy.policy.rules import Rules
from ..privacy.submission import Submission
from ..server.central_federation import CentralFederation
from ..server.central_ledger import CentralLedger
from ..server.checkpoints import Checkpoints, State
from ..server.federation import Federation
from ..server.gathered import Held
from ..server.run_folder import RunFolder
from ..server.simulated import simulated_submission
from ..server.witnesses import witnesses_in
from .central import central_ledger, central_nodes, central_rounds
from .cohort.passes import Precision
from .cohort_grid import CohortGrid, Party
from .cohort_work import CohortWork
from .crew import Crew
from .engine import Engine, EngineName, processes_for
from .faults import Deeds, Faults, LossyGrid
from .grid import Fault, LocalGrid
from .local_log import local_log
from .nodes import REMEMBERED, NodeFolders, simulated_node
from .onlooker import Onlooker
from .rehearsal import is_sure_of_opacus
from .shelf import Shelf
from .variates import HearingGrid, Variates, corrected, settled
from .views import RoundView, Views, executed_by
from .world import World, check_sizes

# At most so many rounds get an `epsilon_executed` of their own: each is an accountant's run of some 30 ms, which is
# more than the cohort engine takes to train a small model in ten nodes.
ROUNDS_ACCOUNTED = 20
SHELF = "round.bin"  # in the folder of answers: those of the round that is under way
VARIATES = "variates.bin"
LOCK = "lock"
POLICY = "policy.cedar"  # in the run's folder: what its nodes ask, where they ask a policy


Watch = Callable[[RoundView], None]


class Scenario:
    """One plan, simulated in one folder. Begin it with `begun`, or find it again with `resumed`."""

    def __init__(
        self,
        plan: Plan,
        submission: Submission,
        folder: RunFolder,
        world: World,
        device: torch.device,
        ledgers: Path | None = None,
        engine: EngineName = "auto",
        processes: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        """`processes`: how many train, at most; by default one for each core. `precision`: what they multiply in."""
        if engine == "ray" and plan.privacy.is_central:
            raise UsageError("--engine ray: with unit 'node' all nodes train in this process", "--engine auto")
        if engine == "ray" and plan.aggregation.strategy == "scaffold":
            raise UsageError("--engine ray: strategy 'scaffold' keeps what it must in this machine", "--engine auto")
        self.plan = plan
        self.submission = submission
        self.folder = folder
        self.world = world
        self.ledgers = ledgers or folder.root / "ledgers"
        self._bench = Bench(world.task, device)
        self._device = device
        self._asked = engine
        self._processes = processes
        self._precision = precision
        self._own = OwnSignatures(REMEMBERED)
        # Unfit tasks are found before anything is charged; by their gradients where the engine is chosen.
        self.trainable = self._bench.trainable(submission, with_gradients=False)
        self.views = Views(folder.root / "views.jsonl")
        self.deeds = Deeds(folder.root / "faults.jsonl")

    @classmethod
    def begun(
        cls,
        plan: Plan,
        folder: RunFolder,
        world: World,
        device: torch.device,
        ledgers: Path | None = None,
        policy: Rules | None = None,
        engine: EngineName = "auto",
        processes: int | None = None,
        precision: Precision = "float32",
    ) -> "Scenario":
        """A new run: resolved, checked, and written down so that it can be resumed. `policy`: every node asks it."""
        check_sizes(plan, world)
        if policy is not None and plan.privacy.is_central:
            raise UsageError("--policy: with unit 'node' the nodes have no ledgers and ask no policy", "leave it out")
        submission = simulated_submission(plan)
        scenario = cls(plan, submission, folder, world, device, ledgers, engine, processes, precision)
        scenario.engine  # noqa: B018 -- an engine that cannot train the model is said before anything is written
        folder.begin(plan, submission)
        if policy is not None:
            write_whole(folder.root / POLICY, policy.text.encode())
        return scenario

    @classmethod
    def resumed(
        cls,
        folder: RunFolder,
        device: torch.device,
        ledgers: Path | None = None,
        engine: EngineName = "auto",
        processes: int | None = None,
        precision: Precision = "float32",
    ) -> "Scenario":
        """The run that was begun in this folder."""
        plan, submission = folder.read()
        world = World.of(plan, load_task(plan.run.task))
        return cls(plan, submission, folder, world, device, ledgers, engine, processes, precision)

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the plan as it stands in the folder, hexadecimal."""
        return hashlib.sha256(plan_text(self.plan).encode()).hexdigest()

    @cached_property
    def engine(self) -> Engine:
        """What trains the nodes; raises UnsupportedError for a model that the engine asked for cannot train."""
        chosen = Engine.chosen(self._asked, self.world, self.submission, self._device, self._precision)
        if chosen.model is None or not is_sure_of_opacus(chosen.model):
            self._bench.trainable(self.submission)
        return chosen

    @cached_property
    def nodes(self) -> Mapping[str, Participant]:
        """The nodes by name, each with its ledger; without one where the server's noise hides them."""
        if self.submission.plan.privacy.is_central:
            return central_nodes(self.world, self.submission, self._workshop)
        policy = self.folder.root / POLICY
        asked = policy if policy.exists() else None
        folders = NodeFolders(self.ledgers, self._answers, asked, self._shelf, self._own)
        return {
            name: simulated_node(self.world, name, self.submission.plan, folders, self._workshop_of(name))
            for name in self.world.shares
        }

    @property
    def _workshop(self) -> Workshop:
        return self._bench.trainer if self.engine.model is None else self._bench.reserve

    def _workshop_of(self, name: str) -> Workshop:
        variates = self._variates
        return corrected(self._bench, variates, name) if variates is not None else self._workshop

    def muster(self) -> None:
        """Start the processes that train; best before anything else of this process runs in threads.

        Raises UsageError where another process is at this run: they would write to the same rows.
        """
        self._alone  # noqa: B018
        self._crew  # noqa: B018

    def run(self, watch: Watch, fault: Fault | None = None) -> State:
        """Carry it out, from its newest checkpoint where there is one. Writes the model."""
        self.muster()
        onlooker = Onlooker(
            self.submission,
            self.trainable,
            self.world,
            self._attempts_told,
            self._view_of,
            self.views,
            watch,
            self._work,
            self._crew,
        )
        names = dict(enumerate(self.world.shares, start=2))  # 1 is the server
        faults = self._faults(names)
        local = self._grid(names, fault or faults, onlooker.catch_up)
        held = local if isinstance(local, CohortGrid) else None
        grid: Grid = local if self._variates is None else HearingGrid(local, self._variates, names)
        if faults is not None:
            grid = LossyGrid(grid, faults)
        look = onlooker.look if self._variates is None else settled(self._variates, onlooker.look)
        checkpoints = self.folder.checkpoints(self.submission, survives_power_cut=False)
        with local_log(self.folder), closing(local):
            federation = self._federation(grid, checkpoints, look, names, held)
            try:
                state = federation.run()
            finally:
                onlooker.catch_up()
        self.folder.write_model(self.submission, state)
        for kept in (self._shelf, self._variates):
            if kept is not None:
                kept.clear()
        return replace(state, excluded=federation.refused | state.excluded)

    def _federation(
        self,
        grid: Grid,
        checkpoints: Checkpoints,
        look: Callable[[State], None],
        names: Mapping[int, str],
        held: Held | None,
    ) -> Federation:
        """The server: one that adds noise, with its own ledger, where whole nodes are hidden."""
        if self._server is not None:
            rounds = central_rounds(self.submission, self.world, self._server)
            return CentralFederation(
                self.submission,
                grid,
                checkpoints,
                look,
                name_of=names.__getitem__,
                held=held,
                central=rounds,
                initial=self.trainable.initial,
            )
        witnesses = witnesses_in(self.ledgers, self.submission.plan.run.rounds, self._own)
        return Federation(self.submission, grid, checkpoints, look, witnesses, name_of=names.__getitem__, held=held)

    def close(self) -> None:
        """Let go of the ledgers: only then is each one file that can be copied and audited."""
        if self.__dict__.get("_crew") is not None:
            self.__dict__.pop("_crew").close()
        if "nodes" in self.__dict__:
            for node in self.nodes.values():
                node.close()
        if self.__dict__.get("_server") is not None:
            self.__dict__.pop("_server").close()
        if "_alone" in self.__dict__:
            self.__dict__.pop("_alone").close()

    def standings(self) -> list[Standing]:
        """What the run has cost each node; where whole nodes are hidden, what it has cost any of them, once."""
        if self._server is not None:
            return [self._server.standing()]
        return [self.standing(name) for name in self.world.shares]

    def standing(self, name: str) -> Standing:
        """What the run has cost a node. Where whole nodes are hidden, what it has cost any of them."""
        if self._server is not None:
            return self._server.standing()
        node = self.nodes[name]
        assert isinstance(node, Node), "a node with a ledger of its own"
        return node.standing(self.submission)

    @cached_property
    def _server(self) -> CentralLedger | None:
        """The server's own ledger, with the run charged, where its noise is what hides the nodes."""
        is_central = self.submission.plan.privacy.is_central
        return central_ledger(self.ledgers, self.world, self.submission) if is_central else None

    def _grid(self, names: Mapping[int, str], fault: Fault | None, meanwhile: Callable[[], None]) -> LocalGrid:
        contexts = {
            n: Context(1, n, {"partition-id": n - 2, "num-partitions": len(names)}, RecordDict(), {}) for n in names
        }
        if self.engine.name == "ray":
            return self._ray_grid(contexts, fault)
        by_id = {n: self.nodes[name] for n, name in names.items()}
        app = client_app(lambda context: by_id[context.node_id])
        if self._work is None or self._crew is None:
            return LocalGrid(app, contexts, fault)
        parties = {n: Party(node, len(self.world.shares[node.name].indices)) for n, node in by_id.items()}
        return CohortGrid(
            app,
            contexts,
            parties,
            self._work,
            self._crew,
            self.engine.ordered,
            is_summed=not self.plan.keeps_updates,
            fault=fault,
            meanwhile=meanwhile,
        )

    @property
    def _answers(self) -> Path:
        return self.folder.root / "answers"

    @cached_property
    def _shelf(self) -> Shelf | None:
        if self.engine.model is None:
            return None
        path = None if self.plan.privacy.is_central else self._answers / SHELF  # no noise is on those
        return Shelf(path, self.engine.model.initial, len(self.world.shares))

    @cached_property
    def _work(self) -> CohortWork | None:
        model, shelf = self.engine.model, self._shelf
        if model is None or shelf is None:
            return None
        precision = self.engine.precision
        return CohortWork(model, self.trainable, self.submission, self.world, shelf, self._variates, precision)

    @cached_property
    def _variates(self) -> Variates | None:
        """What SCAFFOLD's nodes keep from round to round."""
        if self.plan.aggregation.strategy != "scaffold":
            return None
        at = self.folder.root / VARIATES
        return Variates(at, self.trainable.initial, list(self.world.shares), self.plan.training)

    @cached_property
    def _alone(self) -> ExitStack:
        """Nobody else is at the run until this is closed, or this process gone: its crew may outlive it a moment."""
        root, held = self.folder.root, ExitStack()
        message, remedy = f"{root}: another process is at this run", f"wait, then: privet simulate --resume {root}"
        held.enter_context(only_one(root / LOCK, message, remedy, with_children=False))
        return held

    @cached_property
    def _crew(self) -> Crew | None:
        """The processes that train in groups, forked before ledgers are opened."""
        if self._work is None:
            return None
        processes = processes_for(self.engine, self.submission.plan, self.world, self._processes)
        if processes > 1:
            executed_by(self.submission, 1, 1)  # what accounts for a round is loaded once, and not in each of them
        return Crew(self._work, processes)

    def _ray_grid(self, contexts: Mapping[int, Context], fault: Fault | None) -> LocalGrid:
        """Its workers open the ledgers; this process does so when they are done."""
        from .ray_actor import Place
        from .ray_grid import RayGrid  # Ray, which takes seconds to import

        policy = (self.folder.root / POLICY).absolute()
        place = Place(
            run_id=self.submission.run_id,
            root=str(self.folder.root.absolute()),
            ledgers=str(self.ledgers.absolute()),
            policy=str(policy) if policy.exists() else None,
            working=str(Path.cwd()),
            device=self._device.type,  # Ray shows a worker its own GPU, and no other
            nodes=len(self.world.shares),
        )
        return RayGrid(place, contexts, self._processes, fault)

    def _faults(self, names: Mapping[int, str]) -> Faults | None:
        section = self.plan.simulation.faults if self.plan.simulation else None
        return Faults(section, self.plan.run.seed, names, self.deeds) if section and section.is_any else None

    def _view_of(self, state: State, scores: dict[str, float], epsilon: Decimal | None) -> RoundView:
        report = state.history[-1] if state.history else None
        return RoundView(
            round=state.round,
            scores=scores,
            epsilon_executed=epsilon,
            answered=report.answered if report else 0,
            released=report.metrics if report else {},
        )

    def _attempts_told(self, state: State) -> int | None:
        """The largest node's, as if all that was asked for had begun; None after rounds of which no epsilon is told."""
        plan = self.submission.plan
        stride = -(-plan.run.rounds // ROUNDS_ACCOUNTED)
        if state.round % stride and state.round != plan.run.rounds:
            return None
        return state.round if plan.privacy.is_central else max(state.participations.values(), default=0)
