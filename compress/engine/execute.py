"""Doing a plan: each node that is not in the store yet, parents first, in a worker process of its own.

What is finished is kept, whatever happens next; the record on disk is up to date after every node, so `status` and
`report` tell the truth about a run that still works, failed or was stopped.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, cast

from compress import plugins
from compress.engine.events import Clock, Listener, log_path
from compress.engine.gates import Gates, judge
from compress.engine.rates import Rates, estimated_memory_bytes
from compress.engine.runs import save_record
from compress.engine.store import Store
from compress.engine.tasks import Task
from compress.engine.workers import Workers
from compress.environment import available_memory_bytes, device_class
from compress.errors import CompressError, DoesNotFit, GateFailed, Interrupted, Preempted
from compress.pipeline.plan import Node, Plan
from compress.records import Artifact, GateResult, Generation, Measurement, ModelRole, RunRecord, StepRecord

GIB = 2**30


class Execution:
    """One run of a plan. `draft` is the run's record before anything was done."""

    def __init__(
        self, plan: Plan, draft: RunRecord, folder: Path, store: Store, gates: Gates | None, listen: Listener
    ) -> None:
        self.record = draft
        self._plan = plan
        self._folder = folder
        self._store = store
        self._gates = gates
        self._listen = listen
        self._rates = Rates(store.root)
        self._artifacts: dict[str, Artifact] = {}
        self._fresh: set[str] = set()
        self._started = time.monotonic()
        self._telling = threading.Lock()

    def run(self) -> RunRecord:
        """Do all that is missing and return the finished record.

        Raises the `CompressError` of the first node that failed, `GateFailed` at the end when a gate did; the
        record on disk says so too.
        """
        missing = self._missing()
        self._announce(missing)
        try:
            self._check_it_fits(missing)
            self._do(missing)
        except CompressError as error:
            stopped = isinstance(error, Interrupted | Preempted)
            self._finish("interrupted" if stopped else "failed", error=str(error))
            raise
        gates = judge(self.record, self._gates) if self._gates and not self._plan.rehearsal else ()
        self.record = self.record.model_copy(update={"gates": gates})
        failed = [gate for gate in gates if not gate.passed]
        self._finish("gates failed" if failed else "done")
        if failed:
            raise GateFailed("a quality gate failed: " + "; ".join(map(_gate_line, failed)))
        return self.record

    def _missing(self) -> list[Node]:
        """Load what the store has; return what must be done: wanted results, and what those need."""
        needed: set[str] = set()
        for node in reversed(self._plan.nodes):
            wanted = node.is_model or node.role == "measurement" or node.name in needed
            if not wanted or self._load(node):
                continue
            needed.add(node.name)
            needed.update(node.edges)
        return [node for node in self._plan.nodes if node.name in needed and node.name not in self._artifacts]

    def _load(self, node: Node) -> bool:
        artifact = node.given or self._store.get(node.key)
        if artifact:
            self._artifacts[node.name] = artifact
        return artifact is not None

    def _announce(self, missing: list[Node]) -> None:
        models = [{"name": node.name, "use": node.use} for node in self._plan.models]
        cached = len(self._plan.nodes) - len(missing)
        self._tell(event="plan", models=models, num_nodes=len(self._plan.nodes), num_cached=cached)
        busy = {node.about for node in missing}
        for node in self._plan.models:
            if node.name not in busy:
                self._tell(event="cached", node=node.name)
            self._record_step(node.name)

    def _check_it_fits(self, missing: list[Node]) -> None:
        self._store.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._store.root).free
        wanted = sum(n.work.disk_bytes or (n.spec.weight_bytes if n.spec else 0) for n in missing)
        if wanted > free:
            raise DoesNotFit(
                f"the run will write {_amount(wanted)} to {self._store.root}, where {_amount(free)} are "
                "free. Free some (`compress gc`), or point COMPRESS_HOME at a larger disk."
            )
        available = available_memory_bytes()
        for node in missing:
            needed = estimated_memory_bytes(node) or 0
            if device_class() == "cpu" and needed > available:
                raise DoesNotFit(
                    f"step '{node.name}' needs about {_amount(needed)} of memory; "
                    f"{_amount(available)} are available on this machine."
                )

    def _do(self, missing: list[Node]) -> None:
        """Do the missing nodes: one at a time, so that nothing disturbs a timing; in a rehearsal, side by side."""
        side_by_side = (os.cpu_count() or 1) if self._plan.rehearsal else 1
        workers = Workers(threads=1 if self._plan.rehearsal else None)
        with workers.signals(), ThreadPoolExecutor(side_by_side) as threads:
            try:
                self._schedule(missing, side_by_side, lambda node: threads.submit(self._work, node, workers))
            except CompressError:
                workers.stop()
                raise
            finally:
                threads.shutdown()
                workers.close()

    def _schedule(self, missing: list[Node], limit: int, start: Callable[[Node], Future[None]]) -> None:
        """Start nodes whose inputs are there, at most `limit` at once.

        One at a time goes in the plan's order: a model is measured before the next is made. Side by side, making goes
        first, because the longest chain of steps decides when all is done.
        """
        waiting, running = list(missing), dict[Future[None], Node]()
        if limit > 1:
            waiting.sort(key=lambda node: node.role == "measurement")
        while waiting or running:
            for node in [n for n in waiting if all(edge in self._artifacts for edge in n.edges)]:
                if len(running) < limit:
                    waiting.remove(node)
                    self._tell(event="start", node=node.name, about=node.about, use=node.use)
                    running[start(node)] = node
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finish_node(running.pop(future), future)

    def _work(self, node: Node, workers: Workers) -> None:
        clock = Clock()

        def forward(event: dict[str, Any]) -> None:
            if event["event"] in ("progress", "warning", "waiting"):
                self._tell(**clock.timed({**event, "node": node.name, "about": node.about}))

        workers.run(self._task(node), log_path(self._folder, node.name), forward)

    def _finish_node(self, node: Node, future: Future[None]) -> None:
        """Take note of a result. Raises what the node raised, saying whose it was."""
        try:
            future.result()
        except CompressError as error:
            self._tell(event="failed", node=node.name, about=node.about, message=str(error))
            if isinstance(error, Interrupted | Preempted):
                raise
            raise type(error)(f"step '{node.name}' ({node.use}): {error}") from error
        assert self._load(node), f"{node.name} was committed but is not in the store"
        self._fresh.add(node.name)
        seconds = self._store.manifest(node.key)["seconds"]
        self._rates.learn(node, seconds)
        self._tell(event="done", node=node.name, about=node.about, seconds=seconds)
        self._record_step(node.about)

    def _tell(self, **event: Any) -> None:
        with self._telling:
            self._listen(event)

    def _task(self, node: Node) -> Task:
        return Task(
            key=node.key,
            use=node.use,
            settings=node.config.model_dump(mode="json"),
            parent=self._artifacts[node.parent] if node.parent else None,
            inputs={field: self._artifacts[name] for field, name in node.inputs.items()},
            seed=node.seed,
            root=self._store.root,
            lineage={
                "use": node.use,
                "ingredients": node.ingredients,
                "estimated_seconds": self._rates.seconds(node),
            },
        )

    def _record_step(self, name: str) -> None:
        """Bring one model's part of the record up to date, and save it."""
        if name not in self._artifacts or not self._plan[name].is_model:
            return
        done = {step.name: step for step in self.record.steps}
        done[name] = self._step_record(self._plan[name])
        steps = tuple(done[node.name] for node in self._plan.models if node.name in done)
        seconds = time.monotonic() - self._started
        self.record = self.record.model_copy(update={"steps": steps, "seconds": seconds})
        save_record(self.record, self._folder)

    def _step_record(self, node: Node) -> StepRecord:
        artifact = self._artifacts[node.name]
        made: dict[str, Any] = self._store.manifest(node.key) if not node.given else {}
        assert artifact.spec is not None
        predicted = node.spec or artifact.spec
        facts = dict(artifact.facts)
        measurements, generations = self._measured(node)
        return StepRecord(
            name=node.name,
            use=node.use,
            kind=node.kind,
            role=cast(ModelRole, node.role),
            parent=self._visible_parent(node),
            key=node.key,
            cached=node.name not in self._fresh,
            settings=node.config.model_dump(mode="json"),
            inputs=node.inputs,
            seconds=made.get("seconds", 0.0),
            peak_memory_bytes=made.get("peak_memory_bytes", 0),
            disk_bytes=made.get("disk_bytes") or _model_bytes(artifact.path),
            predicted=predicted.size,
            realized=artifact.spec.size,
            estimated_seconds=made.get("estimated_seconds"),
            estimated_peak_memory_bytes=estimated_memory_bytes(node),
            curve=facts.pop("curve", ()),
            facts=facts,
            warnings=made.get("warnings", ()),
            measurements=measurements,
            generations=generations,
        )

    def _visible_parent(self, node: Node) -> str | None:
        return node.parent if node.parent and self._plan[node.parent].is_model else None

    def _measured(self, node: Node) -> tuple[tuple[Measurement, ...], tuple[Generation, ...]]:
        measurements: list[Measurement] = []
        generations: list[Generation] = []
        for measurement in self._plan.measurements_of(node.name):
            if measurement.name not in self._artifacts:
                continue
            folder = self._artifacts[measurement.name].path
            measurements += map(
                Measurement.model_validate, json.loads((folder / "measurements.json").read_text())
            )
            if (folder / "generations.json").exists():
                generations += map(
                    Generation.model_validate, json.loads((folder / "generations.json").read_text())
                )
        if self.record.usd_per_hour is not None:
            cost = plugins.internal("measure.cost")
            measurements += cost.costs(measurements, self.record.usd_per_hour, self.record.utilisation)
        return tuple(measurements), tuple(generations)

    def _finish(self, status: str, error: str | None = None) -> None:
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        seconds = time.monotonic() - self._started
        self.record = self.record.model_copy(
            update={"status": status, "error": error, "finished": finished, "seconds": seconds}
        )
        save_record(self.record, self._folder)
        self._tell(event="finish", status=status, seconds=seconds)


def _amount(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _gate_line(gate: GateResult) -> str:
    measured = "was not measured" if gate.measured is None else f"is {gate.measured:.4g}"
    return f"{gate.step}: {gate.gate} {measured}, the limit is {gate.limit:.4g}"


def _model_bytes(folder: Path) -> int:
    """Bytes of a checkpoint that is not ours: weights, configuration and tokenizer, not whatever else lies there."""
    return sum(
        p.stat().st_size
        for p in folder.iterdir()
        if p.suffix in (".safetensors", ".json", ".model", ".jinja")
    )
