"""Doing a plan: each node that is not in the store yet, parents first, in a worker process of its own.

What is finished is kept, whatever happens next; the record on disk is up to date after every node, so `status` and
`report` tell the truth about a run that still works, failed or was stopped.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from compress.cores import usable_cores
from compress.engine.events import Clock, Listener, log_path
from compress.engine.gates import Gates, judge
from compress.engine.rates import Rates
from compress.engine.recorder import Recorder
from compress.engine.room import full_disk_told, most_workers, shortages, unless_full
from compress.engine.runs import driving, save_record
from compress.engine.store import Store
from compress.engine.tasks import Task
from compress.engine.workers import OnEvent, Workers
from compress.errors import CompressError, DoesNotFit, GateFailed, Interrupted, Preempted
from compress.pipeline.plan import Node, Plan
from compress.records import Artifact, GateResult, RunRecord


class Execution:
    """One run of a plan. `draft` is the run's record before anything was done."""

    def __init__(
        self,
        plan: Plan,
        draft: RunRecord,
        folder: Path,
        store: Store,
        gates: Gates | None,
        listen: Listener,
        grace: float | None = None,
    ) -> None:
        assert not plan.assumed, "a plan that was not looked up is only to look at"
        self.record = draft
        self._plan = plan
        self._folder = folder
        self._store = store
        self._gates = gates
        self._listen = listen
        self._grace = grace
        self._rates = Rates(store.root)
        self._recorder = Recorder(plan, store, draft.usd_per_hour, draft.utilisation)
        self._artifacts: dict[str, Artifact] = {}
        self._fresh: set[str] = set()
        self._started = time.monotonic()
        self._telling = threading.Lock()

    def run(self) -> RunRecord:
        """Do all that is missing and return the finished record.

        Raises the `CompressError` of the first node that failed, `GateFailed` at the end when a gate did; the
        record on disk says so too.
        """
        with driving(self._folder):
            save_record(self.record, self._folder)
            return self._run()

    def _run(self) -> RunRecord:
        missing = self._plan.missing(self._load)
        self._announce(missing)
        try:
            self._check_it_fits(missing)
            self._do(missing)
        except CompressError as error:
            stopped = isinstance(error, Interrupted | Preempted)
            with unless_full():
                self._finish("interrupted" if stopped else "failed", error=str(error))
            raise
        gates = judge(self.record, self._gates) if self._gates and not self._plan.rehearsal else ()
        self.record = self.record.model_copy(update={"gates": gates})
        failed = [gate for gate in gates if not gate.passed]
        self._finish("gates failed" if failed else "done")
        if failed:
            raise GateFailed("a quality gate failed: " + "; ".join(map(_gate_line, failed)))
        return self.record

    def _load(self, node: Node) -> bool:
        """Take a result from the store; return whether it was there."""
        artifact = node.given or self._store.get(node.key)
        if artifact:
            self._artifacts[node.name] = artifact
        return artifact is not None

    def _announce(self, missing: Sequence[Node]) -> None:
        models = [{"name": node.name, "use": node.use} for node in self._plan.models]
        cached = len(self._plan.nodes) - len(missing)
        self._tell(event="plan", models=models, num_nodes=len(self._plan.nodes), num_cached=cached)
        busy = {node.about for node in missing}
        for node in self._plan.models:
            if node.name not in busy:
                self._tell(event="cached", node=node.name)
            self._record_step(node.name)

    def _check_it_fits(self, missing: Sequence[Node]) -> None:
        self._store.root.mkdir(parents=True, exist_ok=True)
        if lacking := tuple(shortages(missing, self._store.root)):
            raise DoesNotFit("\n".join(lacking))

    def _do(self, missing: Sequence[Node]) -> None:
        """Do the missing nodes: one at a time, so that nothing disturbs a timing; in a rehearsal, side by side."""
        side_by_side = most_workers(usable_cores()) if self._plan.rehearsal else 1
        workers = Workers(threads=1 if self._plan.rehearsal else None, grace=self._grace)
        with workers.signals(), ThreadPoolExecutor(side_by_side) as threads:
            try:
                with full_disk_told(self._store.root):
                    self._schedule(
                        missing, side_by_side, lambda node: threads.submit(self._work, node, workers)
                    )
            except CompressError:
                workers.stop()
                raise
            finally:
                threads.shutdown()
                workers.close()

    def _schedule(self, missing: Sequence[Node], limit: int, start: Callable[[Node], Future[None]]) -> None:
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
        def submitted(child: Task, submitter: int) -> None:
            self._work_child(node, child, submitter, workers)

        where = {"node": node.name, "about": node.about}
        log = log_path(self._folder, node.name)
        workers.run(self._task(node), log, self._forward(where), submitted)

    def _work_child(self, node: Node, child: Task, submitter: int, workers: Workers) -> None:
        """Do what a node's worker submitted, told as part of the node. Raises what the child raised."""
        where = {"node": node.name, "about": node.about, "child": child.child_name}
        log = log_path(self._folder, f"{node.name}/{child.child_name}")
        started = time.monotonic()
        self._tell(event="child start", **where, use=child.use)
        try:
            workers.run(child, log, self._forward(where), submitter=submitter)
        except CompressError as error:
            self._tell(event="child failed", **where, message=str(error))
            raise
        self._tell(event="child done", **where, seconds=time.monotonic() - started)

    def _forward(self, where: dict[str, str]) -> OnEvent:
        """Return a listener that passes a worker's events on, saying whose they are."""
        clock = Clock()

        def forward(event: dict[str, Any]) -> None:
            if event["event"] in ("progress", "warning", "waiting"):
                self._tell(**clock.timed({**event, **where}))

        return forward

    def _finish_node(self, node: Node, future: Future[None]) -> None:
        """Take note of a result. Raises what the node raised, saying whose it was."""
        try:
            with full_disk_told(self._store.root):  # the driver writes too: events, log and record
                future.result()
                self._take(node)
        except CompressError as error:
            with unless_full():
                self._tell(event="failed", node=node.name, about=node.about, message=str(error))
            if isinstance(error, Interrupted | Preempted):
                raise
            raise type(error)(f"step '{node.name}' ({node.use}): {error}") from error

    def _take(self, node: Node) -> None:
        assert self._load(node), f"{node.name} was committed but is not in the store"
        self._fresh.add(node.name)
        seconds = self._store.manifest(node.key)["seconds"]
        if not self._plan.rehearsal:  # tiny work on a thread of its own: nothing about the real one
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
                "devices": node.work.devices,
            },
        )

    def _record_step(self, name: str) -> None:
        """Bring one model's part of the record up to date, and save it."""
        if name not in self._artifacts or not self._plan[name].is_model:
            return
        done = {step.name: step for step in self.record.steps}
        done[name] = self._recorder.step(self._plan[name], self._artifacts, cached=name not in self._fresh)
        steps = tuple(done[node.name] for node in self._plan.models if node.name in done)
        seconds = time.monotonic() - self._started
        self.record = self.record.model_copy(update={"steps": steps, "seconds": seconds})
        save_record(self.record, self._folder)

    def _finish(self, status: str, error: str | None = None) -> None:
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        seconds = time.monotonic() - self._started
        self.record = self.record.model_copy(
            update={"status": status, "error": error, "finished": finished, "seconds": seconds}
        )
        save_record(self.record, self._folder)
        self._tell(event="finish", status=status, seconds=seconds)


def _gate_line(gate: GateResult) -> str:
    measured = "was not measured" if gate.measured is None else f"is {gate.measured:.4g}"
    line = f"{gate.step}: {gate.gate} {measured}, the limit is {gate.limit:.4g}"
    if gate.finding != "not enough items" or gate.low is None or gate.high is None:
        return line
    enough = f"; about {gate.enough_items:,} items would" if gate.enough_items else ""
    return f"{line}; its 95 % interval {gate.low:.4g} to {gate.high:.4g} does not prove it{enough}"
