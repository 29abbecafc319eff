"""Evaluators on all devices of a Ray cluster; an actor that is done takes the next shard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deft.evaluators.generation.actor import Evaluator
from deft.evaluators.generation.job import EvaluationJob, JobResult
from deft.evaluators.generation.shards import ShardedJobs
from deft.evaluators.spec import EngineSpec

MAX_DEATHS = 3
"""Deaths of actors over one job after which it is given up."""

POLL_SECONDS = 30.0
"""Seconds between checks for hung engines, and until it is reported that all devices are busy."""

HUNG_ENGINE_SECONDS = 3600.0
"""Seconds without a new response after which an engine counts as hung and is replaced; 32,000
tokens at ten a second take less."""

_ENVIRONMENT = {
    # The engine runs inside the actor: faster to start, and gone when the actor is gone.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Ray counts the actor's cores into OMP_NUM_THREADS; vLLM would bind itself to others.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}


@dataclass
class _Slot:
    """Reserved devices and the actor on them."""

    group: PlacementGroup | None
    """Reservation of the devices; None if nothing is reserved."""
    actor: Any = None
    model: str = ""
    """Model directory of its last job."""
    waiting_for: Any = None
    """Ray reference that is awaited: of the reservation or of a running job."""
    job: EvaluationJob | None = None
    """The running job."""
    journal_size: int | None = None
    """Bytes of the job's journal at the last check."""
    grown_at: float = 0.0
    """Time of the last check that found the journal grown, by the monotonic clock."""


class Pool(Protocol):
    """A set of evaluators."""

    def run(
        self, jobs: Sequence[EvaluationJob], progress: Queue | None = None
    ) -> Iterator[tuple[EvaluationJob, JobResult]]:
        """Yield each job with its result as soon as it is done."""


@dataclass
class EvaluatorPool:
    """As many evaluators as the cluster's devices allow, started as jobs need them.

    Engines stay warm from one `run` to the next, and a model of an architecture that one of them
    serves costs no engine start. Each engine's
    devices are reserved in a placement group, which an actor that replaces a dead one inherits and
    `close` gives back. A context manager; not for several threads.
    """

    spec: EngineSpec
    use_gpu: bool
    """Whether engines run on GPUs."""
    verbose: bool = False
    """Whether vLLM and PyTorch log more than errors."""
    max_engines: int | None = None
    """Most engines, however many devices there are."""
    reserve: bool = True
    """Whether devices stay reserved until `close`; if not, engines use CPUs that others reserved
    but leave idle."""
    _slots: list[_Slot] = field(default_factory=list)
    _num_engines: int = 0

    def __post_init__(self) -> None:
        """Reserve nothing yet.

        Raises:
            ValueError: no node of the cluster has enough devices for one engine.
        """
        self._bundle = engine_resources(self.spec, use_gpu=self.use_gpu)
        fitting = count_engines(self.spec, use_gpu=self.use_gpu)
        self._num_engines = min(fitting, self.max_engines or fitting)

    def run(
        self, jobs: Sequence[EvaluationJob], progress: Queue | None = None
    ) -> Iterator[tuple[EvaluationJob, JobResult]]:
        """Yield each job with its result as soon as it is done; idle engines take shards of it.

        Args:
            jobs: taken in this order, except that an actor prefers jobs for the model it has.
            progress: queue for the actors' progress events; ``{"event": "evaluator_died", "model":
                label, "benchmark": name}`` says that one was lost and another goes on, and
                ``{"event": "waiting_for_devices", "needed": resources}`` that others hold them.

        Raises:
            RayTaskError: a job failed; its cause is what `Evaluator.run` raises.
            RuntimeError: actors died over a job, one after the other.
        """
        sharded = ShardedJobs(jobs, self._num_engines)
        for job, result in self.run_each(sharded.pending, progress):
            whole = sharded.add(job, result)
            if whole is not None:
                yield whole

    def run_each(
        self, pending: list[EvaluationJob], progress: Queue | None = None
    ) -> Iterator[tuple[EvaluationJob, JobResult]]:
        """Run jobs as they are, see `run`; whoever takes the results may add to ``pending``."""
        deaths: Counter[EvaluationJob] = Counter()
        self.reserve_devices(min(self._num_engines, len(pending)))
        try:
            while pending or any(slot.job is not None for slot in self._slots):
                for slot in self._slots:
                    if slot.waiting_for is None and pending:
                        job = next((job for job in pending if job.model == slot.model), pending[0])
                        pending.remove(job)
                        self._start(slot, job, progress)
                busy = {slot.waiting_for: slot for slot in self._slots if slot.waiting_for}
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=POLL_SECONDS)
                self._kill_hung()
                if not ready:
                    if progress is not None and not any(slot.job for slot in self._slots):
                        progress.put({"event": "waiting_for_devices", "needed": self._bundle})
                    continue
                (done,) = ready
                slot = busy[done]
                slot.waiting_for = None
                finished_job, slot.job = slot.job, None
                if finished_job is None:  # its devices have been reserved
                    continue
                try:
                    result = ray.get(done)
                except ray.exceptions.RayActorError as error:
                    slot.actor, slot.model = None, ""
                    deaths[finished_job] += 1
                    name = finished_job.name
                    if deaths[finished_job] == MAX_DEATHS:
                        raise RuntimeError(
                            f"the evaluator died {MAX_DEATHS} times over {name}: {error}"
                        ) from error
                    pending.insert(0, finished_job)
                    if progress is not None:
                        event = {"event": "evaluator_died", "model": finished_job.label}
                        progress.put({**event, "benchmark": name})
                else:
                    yield finished_job, result
        finally:
            self._drop_unfinished()

    def reserve_devices(self, num_engines: int) -> None:
        """Ask Ray for the devices of so many engines, without waiting for them."""
        while len(self._slots) < num_engines:
            if self.reserve:
                group = placement_group([self._bundle], strategy="STRICT_PACK")
                self._slots.append(_Slot(group, waiting_for=group.ready()))
            else:
                self._slots.append(_Slot(None))

    def wait_for_devices(self) -> None:
        """Wait until all devices that were asked for are reserved."""
        ray.get([slot.group.ready() for slot in self._slots if slot.group is not None])

    def _drop_unfinished(self) -> None:
        """Kill the actors of jobs that nobody waits for any more."""
        for slot in self._slots:
            if slot.job is not None:
                ray.kill(slot.actor)
                slot.actor, slot.model, slot.job, slot.waiting_for = None, "", None, None

    def _start(self, slot: _Slot, job: EvaluationJob, progress: Queue | None) -> None:
        """Run ``job`` on the slot's actor, which is started if there is none."""
        if slot.actor is None:
            slot.actor = self._start_actor(slot.group)
        slot.job, slot.model, slot.journal_size = job, job.model, None
        slot.waiting_for = slot.actor.run.remote(job, progress)

    def _kill_hung(self) -> None:
        """Kill the actors whose journals have not grown for `HUNG_ENGINE_SECONDS`."""
        for slot in self._slots:
            if slot.job is None:
                continue
            journal = slot.job.journal
            size = journal.stat().st_size if journal.exists() else 0
            if size != slot.journal_size:
                slot.journal_size, slot.grown_at = size, time.monotonic()
            elif time.monotonic() - slot.grown_at > HUNG_ENGINE_SECONDS:
                ray.kill(slot.actor)

    def _start_actor(self, group: PlacementGroup | None) -> Any:
        """Start an actor in ``group``. It is typed Any because Ray's own type has no methods."""
        environment = {**_ENVIRONMENT, **({} if self.verbose else _QUIET)}
        if self.use_gpu and self.spec.batch_invariant:
            environment["VLLM_BATCH_INVARIANT"] = "1"
        if group is None:
            # Ray derives the number of threads from CPUs that are reserved.
            environment["OMP_NUM_THREADS"] = f"{self._bundle['CPU']:.0f}"
            as_actor = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})
        else:
            as_actor = ray.remote(
                num_cpus=self._bundle["CPU"],
                num_gpus=self._bundle.get("GPU", 0),
                runtime_env={"env_vars": environment},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
            )
        return as_actor(Evaluator).remote(self.spec)

    def close(self) -> None:
        """Kill every actor with its engine, and give the devices back."""
        for slot in self._slots:
            if slot.actor is not None:
                ray.kill(slot.actor)
            if slot.group is not None:
                remove_placement_group(slot.group)
        self._slots.clear()

    def __enter__(self) -> EvaluatorPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def engine_resources(spec: EngineSpec, *, use_gpu: bool) -> dict[str, float]:
    """Return the resources that one engine reserves on one node."""
    if use_gpu:
        return {"CPU": 1, "GPU": spec.tensor_parallel}
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return {"CPU": float(spec.cpus or min((c for c in cores if c >= 1), default=1))}


def count_engines(spec: EngineSpec, *, use_gpu: bool) -> int:
    """Count the engines that the cluster's devices can hold when all are free.

    Raises:
        ValueError: no node has enough devices for one.
    """
    bundle = engine_resources(spec, use_gpu=use_gpu).items()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in bundle) for node in nodes
    )
    if fitting == 0:
        need = " and ".join(f"{amount:g} {kind}s" for kind, amount in bundle)
        raise ValueError(f"engine: it needs {need} on one node; no node of the cluster has as many")
    return fitting
