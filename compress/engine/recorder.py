"""One step's part of the run's record: from the plan, the store's manifests and the measurements done so far."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from compress import plugins
from compress.engine.children import child_record
from compress.engine.rates import estimated_memory_bytes
from compress.engine.store import Store
from compress.pipeline.plan import Node, Plan
from compress.pipeline.vocabulary import vocabulary_bytes
from compress.records import Artifact, ChildRecord, Generation, Measurement, ModelRole, Record, StepRecord

R = TypeVar("R", bound=Record)


class Recorder:
    """Writes step records of one plan."""

    def __init__(self, plan: Plan, store: Store, usd_per_hour: float | None, utilisation: float) -> None:
        self._plan = plan
        self._store = store
        self._usd_per_hour = usd_per_hour
        self._utilisation = utilisation

    def step(self, node: Node, artifacts: Mapping[str, Artifact], cached: bool) -> StepRecord:
        """Return the record of a model that is there, with its measurements among `artifacts`.

        What it had prepared counts as its own: time is added, memory is the highest any of the processes took.
        """
        artifact = artifacts[node.name]
        assert artifact.spec is not None
        made: dict[str, Any] = self._store.manifest(node.key) if not node.given else {}
        prepared = [n for n in self._plan.prepared_for(node.name) if n.key in self._store]
        manifests = [made, *(self._store.manifest(n.key) for n in prepared)]
        children = (
            *(child_record(self._store, n.key, "prepared") for n in prepared),
            *map(ChildRecord.model_validate, made.get("children", ())),
        )
        facts = dict(artifact.facts)
        if node.role == "original" or node.kind != "hf":
            facts["vocabulary_bytes"] = vocabulary_bytes(artifact.spec)
        measurements, generations = self._measured(node, artifacts)
        return StepRecord(
            name=node.name,
            use=node.use,
            kind=node.kind,
            role=cast(ModelRole, node.role),
            parent=self._plan.model_before(node),
            key=node.key,
            cached=cached,
            settings=node.config.model_dump(mode="json"),
            inputs=node.inputs,
            seconds=sum(m.get("seconds", 0.0) for m in manifests),
            device_seconds=sum(m.get("seconds", 0.0) * m.get("devices", 1) for m in manifests),
            peak_memory_bytes=max(m.get("peak_memory_bytes", 0) for m in manifests),
            disk_bytes=made.get("disk_bytes") or _model_bytes(artifact.path),
            predicted=(node.spec or artifact.spec).size,
            realized=artifact.spec.size,
            is_about=node.is_about,
            rival_of=node.rival_of,
            estimated_seconds=_sum_if_known([m.get("estimated_seconds") for m in manifests]),
            estimated_peak_memory_bytes=max(
                (bytes for n in (node, *prepared) if (bytes := estimated_memory_bytes(n))), default=None
            ),
            curve=facts.pop("curve", ()),
            facts=facts,
            warnings=tuple(
                dict.fromkeys([*made.get("warnings", ()), *(w for child in children for w in child.warnings)])
            ),
            measurements=measurements,
            generations=generations,
            children=children,
        )

    def _measured(
        self, node: Node, artifacts: Mapping[str, Artifact]
    ) -> tuple[tuple[Measurement, ...], tuple[Generation, ...]]:
        measurements: list[Measurement] = []
        generations: list[Generation] = []
        for measurement in self._plan.measurements_of(node.name):
            if measurement.name in artifacts:
                folder = artifacts[measurement.name].path
                measurements += _read(folder / "measurements.json", Measurement)
                if (folder / "generations.json").exists():
                    generations += _read(folder / "generations.json", Generation)
        if self._usd_per_hour is not None:
            cost = plugins.internal("measure.cost")
            measurements += cost.costs(measurements, self._usd_per_hour, self._utilisation)
        return tuple(measurements), tuple(generations)


def _read(file: Path, kind: type[R]) -> list[R]:
    return [kind.model_validate(each) for each in json.loads(file.read_text())]


def _sum_if_known(seconds: list[float | None]) -> float | None:
    known = [s for s in seconds if s is not None]
    return sum(known) if len(known) == len(seconds) else None


def _model_bytes(folder: Path) -> int:
    """Bytes of a checkpoint that is not ours: weights, configuration and tokenizer, not whatever else lies there."""
    return sum(
        p.stat().st_size
        for p in folder.iterdir()
        if p.suffix in (".safetensors", ".json", ".model", ".jinja")
    )
