"""From a validated pipeline to its plan: names become edges, settings become keys and exact sizes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from compress import plugins
from compress.digests import DigestMemo, canonical_digest
from compress.errors import HubUnavailable, InputError
from compress.pipeline import origin, rivals
from compress.pipeline.gated import check_gates_are_measured, check_tokens_are_the_originals
from compress.pipeline.keys import ingredients
from compress.pipeline.measuring import measure
from compress.pipeline.plan import Node, Plan, Role
from compress.pipeline.schema import Baseline, ModelSource, Pipeline, StepEntry
from compress.plugins import Measured, PlannedInputs, Prepared, StepConfig
from compress.records import Artifact, ModelSpec, Work


def make_plan(pipeline: Pipeline, memo: DigestMemo, rehearsal: bool = False, assume: bool = False) -> Plan:
    """Return the graph of everything the pipeline makes and measures.

    With `rehearsal`, the same graph over a tiny random model of the same family, with every step's tiny settings.
    With `assume`, what cannot be looked up on the hub is taken as published: a plan to look at (`Plan.assumed`).
    Raises `InputError` for what cannot work: an unknown checkpoint, a step that does not accept its parent, an
    impossible target.
    """
    builder = Builder(pipeline, memo, rehearsal, assume)
    builder.build()
    assumed = tuple(dict.fromkeys(builder.assumed))
    return Plan(
        nodes=tuple(builder.nodes.values()),
        rehearsal=rehearsal,
        assumed=assumed,
        remarks=tuple(builder.remarks),
    )


class _Placed(InputError):
    """A mistake that says already where in the file it stands."""


class Builder:
    """Adds nodes in an order in which parents come first."""

    def __init__(self, pipeline: Pipeline, memo: DigestMemo, rehearsal: bool, assume: bool = False) -> None:
        self.pipeline = pipeline
        self.memo = memo
        self.rehearsal = rehearsal
        self.assume = assume
        self.assumed: list[str] = []
        self.remarks: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.tokenizer = "original"
        """The node whose folder holds the tokenizer data is made with, until a step rewrites it."""

    def build(self) -> None:
        """Add everything: the original, the baselines, the steps, each followed by its measurements."""
        check_gates_are_measured(self.pipeline)
        with self._at_shape(self.pipeline.model, "model"):
            origin.add_original(self, self.pipeline.model)
        measure(self, "original")
        for index, baseline in enumerate(self.pipeline.baselines):
            with self._at_shape(baseline.source, "baselines", index):
                self._add_baseline(baseline)
        rivals.add_rivals(self)
        for step in self.pipeline.steps:
            self._add_step(step, "student")
        check_tokens_are_the_originals(self.pipeline, self.nodes)

    def add(
        self,
        name: str,
        use: str,
        config: StepConfig,
        role: Role,
        *,
        parent: str | None = None,
        inputs: Mapping[str, str] | None = None,
        seed: int | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> Node:
        """Add a node. `content` stands in the key for settings that are only a way to find something (a path)."""
        module = plugins.internal(use)
        inputs = dict(inputs or {})
        seed = self.pipeline.seed if seed is None else seed
        made_of = self._ingredients(use, config, parent, inputs, seed, content)
        spec, work = self._predict(module, config, parent, inputs)
        node = Node(
            name=name,
            use=use,
            role=role,
            kind="measurements" if role == "measurement" else module.PRODUCES,
            key=canonical_digest(made_of),
            config=config,
            parent=parent,
            inputs=inputs,
            seed=seed,
            spec=spec,
            work=work,
            is_about=self._is_about(module, config, parent),
            ingredients=made_of,
        )
        self.nodes[name] = node
        return node

    def give(self, name: str, role: Role, artifact: Artifact) -> None:
        """Add a node that is there already: a checkpoint in a local folder."""
        self.nodes[name] = Node(
            name=name,
            use="checkpoint",
            role=role,
            kind=artifact.kind,
            key=artifact.key,
            config=StepConfig(),
            spec=artifact.spec,
            ingredients={"content": artifact.key},
            given=artifact,
        )

    def add_data(self, name: str, seed: int | None = None, model: str | None = None) -> str:
        """Add the data of a ``data:`` entry, tokenized for a model, unless it is there; return its node's name."""
        tokenizer = self._tokenizer_of(model) if model else self.tokenizer
        node_name = f"data/{name}" if tokenizer == self.tokenizer else f"data/{name}/{tokenizer}"
        if node_name in self.nodes:
            return node_name
        entry = self.pipeline.data[name]
        pack = plugins.internal("data.pack")
        if self.rehearsal:
            length = origin.REHEARSAL_LENGTH
            split = "heldout" if name == self.pipeline.evaluate.text else "train"
            config = pack.Config(source="demo", settings={"split": split}, sequence_length=length, samples=32)
        else:
            config = pack.Config(
                source=entry.source,
                settings=entry.settings.model_dump(mode="json"),
                sequence_length=entry.sequence_length,
                samples=entry.samples,
                tokens=entry.tokens,
                chat_template=None if entry.chat_template is None else str(entry.chat_template),
            )
        content = self._data_content(name, config)
        self.add(node_name, "data.pack", config, "data", parent=tokenizer, seed=seed, content=content)
        return node_name

    def _data_content(self, name: str, config: Any) -> dict[str, Any]:
        """Return what stands in the key for data: what its source and its chat template hold, not where they are."""
        source: Any = plugins.load("data.sources", config.source)
        content: dict[str, Any] = config.model_dump(mode="json", exclude={"settings", "chat_template"})
        content["source version"] = source.VERSION
        with self.at(
            "data", name, next((key for key in ("path", "paths") if key in config.settings), "source")
        ):
            content["digest"] = self._digest(name, source, config)
        if config.chat_template is not None:
            with self.at("data", name, "chat_template"):
                content["chat_template"] = plugins.internal("data.files").digest_files(
                    [config.chat_template], self.memo
                )
        return content

    def _digest(self, name: str, source: Any, config: Any) -> str:
        """Return what a source holds; that it was not looked up, where the hub cannot be asked and need not be."""
        try:
            digest: str = source.digest(source.Config.model_validate(config.settings), self.memo)
        except HubUnavailable:
            if not self.assume:
                raise
            self.assumed.append(f"data.{name}: which commit its text is at")
            return "not looked up"
        return digest

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Have what is refused inside say where in the file its cause stands."""
        try:
            yield
        except InputError as error:
            raise _Placed(f"{self.pipeline.where(*path)}: {'.'.join(map(str, path))}: {error}") from error

    @contextmanager
    def _at_shape(self, source: ModelSource | None, *path: str | int) -> Iterator[None]:
        """Have it say so of a shape or configuration that stands there; a hub's refusal is none of it."""
        key = next((key for key in ("shape", "config") if source and getattr(source, key) is not None), None)
        if key is None:
            yield
            return
        try:
            with self.at(*path, key):
                yield
        except _Placed as error:
            if isinstance(error.__cause__, HubUnavailable | _Placed):
                raise error.__cause__ from None
            raise

    def _tokenizer_of(self, model: str) -> str:
        """Return the node whose tokenizer a model reads: the nearest ancestor whose step rewrote it."""
        node = self.nodes[model]
        if node.given is None and getattr(plugins.internal(node.use), "REWRITES_TOKENIZER", False):
            return model
        return self._tokenizer_of(node.parent) if node.parent else self.tokenizer

    def _add_baseline(self, baseline: Baseline) -> None:
        if baseline.source is None:
            self.add_baseline(baseline.steps)
            return
        origin.add_checkpoint(self, baseline.name, "baseline", baseline.source)
        measure(self, baseline.name)

    def add_baseline(self, steps: Sequence[StepEntry]) -> Node:
        """Add a baseline made by steps, with its measurements, and return it."""
        rival = self._make(self._after_links(steps), "baseline")
        measure(self, rival.name, steps[-1].measure)
        return rival

    def same_model(self, steps: Sequence[StepEntry]) -> Node | None:
        """Return the baseline, if there is one, that is just what the steps make."""
        last = self._after_links(steps)
        config = plugins.internal(last.use).rehearse(last.config) if self.rehearsal else last.config
        inputs = self._inputs(plugins.step(last.use), config, last.parent)
        return self._same(last.use, config, last.parent, inputs, ("baseline",))

    def _after_links(self, steps: Sequence[StepEntry]) -> StepEntry:
        """Return the last of some steps, with all before it added, but those that are there already."""
        parent = steps[0].parent
        for step in steps[:-1]:
            parent = self._make(step.model_copy(update={"parent": parent}), "internal").name
        return steps[-1].model_copy(update={"parent": parent})

    def _add_step(self, step: StepEntry, role: Role) -> None:
        self._make(step, role)
        measure(self, step.name, step.measure)

    def _make(self, step: StepEntry, role: Role) -> Node:
        """Add what a step makes and return it; inside a chain, what is there already and the same."""
        module: Any = plugins.step(step.use)
        parent = self.nodes[step.parent]
        if parent.kind not in module.ACCEPTS:
            raise InputError(self._refusal(step, module.ACCEPTS, parent))
        config = module.rehearse(step.config) if self.rehearsal else step.config
        try:
            inputs = self._inputs(module, config, step.parent)
            if role == "internal" and (
                same := self._same(step.use, config, step.parent, inputs, ("internal", "baseline"))
            ):
                return same
            node = self.add(step.name, step.use, config, role, parent=step.parent, inputs=inputs)
            if hasattr(module, "chat_template_for") and (asking := module.chat_template_for(config)):
                self._check_template_of_step(node, asking)
        except _Placed:
            raise
        except InputError as error:
            raise InputError(f"{step.where}: step '{step.name}': {error}") from error
        self.nodes[node.name] = node.model_copy(update={"is_link": role == "internal"})
        return self.nodes[node.name]

    def _check_template_of_step(self, node: Node, setting: str) -> None:
        try:
            self.check_chat_template(node.name)
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error

    def check_chat_template(self, model: str) -> None:
        """Raise `InputError` where a model's tokenizer has no chat template, as far as that is known before any work.

        Training on data that are written by one hands it on.
        """
        node = self.nodes[model]
        data = self.nodes.get(node.inputs.get("data", ""))
        if node.given is not None:
            plugins.internal("data.stored_template").check_stored_template(node.given.path)
        elif node.use == "data.tokenizer":
            raise InputError("the model's tokenizer is made here and has no chat template: leave it out")
        elif data is None or getattr(data.config, "chat_template", None) is None:
            before = node.inputs["tokenizer"] if node.use == "models.adopt" else node.parent
            if before is not None:
                self.check_chat_template(before)

    def _same(
        self, use: str, config: StepConfig, parent: str, inputs: Mapping[str, str], roles: Sequence[Role]
    ) -> Node | None:
        """Return the node of those roles, if there is one, whose result these settings would make again."""
        key = canonical_digest(self._ingredients(use, config, parent, inputs, self.pipeline.seed))
        return next((node for node in self.nodes.values() if node.key == key and node.role in roles), None)

    def _inputs(self, module: Any, config: StepConfig, parent: str) -> dict[str, str]:
        """Return the nodes of everything a module is given beside its parent; add those not there yet."""
        inputs = {}
        for field, to in plugins.references_of(config).items():
            name = getattr(config, field)
            inputs[field] = self.add_data(name, model=parent) if to == "data" else name
        for field, prepared in plugins.prepared(module, config).items():
            assert field not in type(config).model_fields, f"'{field}' is prepared and a setting"
            inputs[field] = self._add_prepared(prepared, self._made_from(prepared, config, parent))
        return inputs

    def _made_from(self, prepared: Prepared, config: StepConfig, parent: str) -> str:
        """Return the model that prepared work is done on. Raises `InputError` where it is another that does not fit."""
        if prepared.on is None:
            return parent
        other: str = getattr(config, prepared.on)
        if (kind := self.nodes[other].kind) not in (accepts := plugins.internal(prepared.use).ACCEPTS):
            raise InputError(
                f"{prepared.use} needs {' or '.join(accepts)}, but `{prepared.on}: {other}` is {kind}"
            )
        reads_data = "data" in plugins.references_of(prepared.config).values()
        if reads_data and self._tokenizer_of(other) != self._tokenizer_of(parent):
            raise InputError(
                f"what {prepared.use} makes of '{other}' is of text in that model's tokens, and '{parent}' has another "
                f"vocabulary (of '{self._tokenizer_of(parent)}')"
            )
        return other

    def _add_prepared(self, prepared: Prepared, parent: str) -> str:
        """Add the node a step asks for before it runs, unless one of the same key is there; return its name."""
        module = plugins.internal(prepared.use)
        kind = self.nodes[parent].kind
        assert kind in module.ACCEPTS, (
            f"{prepared.use} does not accept {kind}, which a step that prepares it does"
        )
        inputs = self._inputs(module, prepared.config, parent)
        config, seed = self._settled(module, prepared.config, inputs), self.pipeline.seed
        key = canonical_digest(self._ingredients(prepared.use, config, parent, inputs, seed))
        for node in self.nodes.values():
            if node.key == key:
                return node.name
        name = f"{parent}/{prepared.use.rpartition('.')[2]}"
        if name in self.nodes:
            name = f"{name}-{key[:8]}"
        self.add(name, prepared.use, config, "internal", parent=parent, inputs=inputs, seed=seed)
        return name

    def _settled(self, module: Any, config: StepConfig, inputs: Mapping[str, str]) -> StepConfig:
        """Return the settings without what makes no difference, given how much data there is."""
        if not hasattr(module, "settle"):
            return config
        known = {field: tokens for field, name in inputs.items() if (tokens := self.nodes[name].num_tokens)}
        settled: StepConfig = module.settle(config, known)
        return settled

    def _ingredients(
        self,
        use: str,
        config: StepConfig,
        parent: str | None,
        inputs: Mapping[str, str],
        seed: int,
        content: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        parent_key = self.nodes[parent].key if parent else None
        input_keys = {field: self.nodes[name].key for field, name in inputs.items()}
        return ingredients(use, config, parent_key, input_keys, seed, content)

    def _refusal(self, step: StepEntry, accepts: tuple[str, ...], parent: Node) -> str:
        fits = [node.name for node in self.nodes.values() if node.is_model and node.kind in accepts]
        return (
            f"{step.where}: step '{step.name}': {step.use} needs {' or '.join(accepts)}, but '{parent.name}' "
            f"({parent.use}) makes {parent.kind}; write `from: {fits[-1]}`"
            + (f" ({', '.join(fits)} fit)" if fits[1:] else "")
        )

    def _predict(
        self, module: Any, config: StepConfig, parent: str | None, inputs: Mapping[str, str]
    ) -> tuple[ModelSpec | None, Work]:
        """Return the spec and work a module foretells. What makes no model predicts none."""
        before = self.nodes[parent].spec if parent else None
        specs = {field: spec for field, node in inputs.items() if (spec := self.nodes[node].spec)}
        spec = module.predict(before, config) if hasattr(module, "predict") else None
        if not hasattr(module, "estimate"):
            return spec, Work()
        texts = {field: text for field, name in inputs.items() if (text := self.nodes[name].text)}
        if not hasattr(module, "measure"):
            return spec, module.estimate(before, config, PlannedInputs(specs, texts))
        assert parent is not None
        if before is None:
            return spec, Work()
        return spec, module.estimate(Measured(self.nodes[parent].kind, before, specs, texts), config)

    def _is_about(self, module: Any, config: StepConfig, parent: str | None) -> bool:
        """Return whether the predicted spec is a guess: the shape is measured, here or where it comes from."""
        measures = getattr(module, "shape_is_measured", None)
        return bool(measures and measures(config)) or (parent is not None and self.nodes[parent].is_about)
