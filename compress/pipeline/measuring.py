"""What is measured of each model of a plan: the nodes for it.

Measurements take their settings from the pipeline's sections by name: a field of `measure.latency`'s `Config` called
``batch_sizes`` is ``profile: batch_sizes``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress import plugins
from compress.digests import folder_content
from compress.environment import hardware_fingerprint, package_versions
from compress.pipeline import origin, rivals
from compress.pipeline.applicable import applicable
from compress.pipeline.sections import MEASUREMENTS, Evaluate, Measurement
from compress.plugins import StepConfig

if TYPE_CHECKING:
    from compress.pipeline.planner import Builder

LAST_STATES = "original/last_states"


def measure(builder: "Builder", name: str, asked: Sequence[Measurement] = MEASUREMENTS) -> None:
    """Add what is asked of a model and applies: quality, divergence from the original, latency, memory."""
    evaluate, profile = builder.pipeline.evaluate, builder.pipeline.profile
    if builder.rehearsal:
        evaluate, profile = origin.rehearsal_evaluate(evaluate), origin.rehearsal_profile(profile)
    is_original = name == "original"
    original = {} if is_original else {"original": "original"}
    text = builder.add_data(evaluate.text, seed=0)
    here = {"hardware": hardware_fingerprint()}
    what, left_out = applicable(builder.nodes[name], builder.nodes["original"], asked, builder.pipeline)
    builder.remarks += left_out
    if "quality" in what:
        _measure_quality(builder, name, evaluate)
    if "divergence" in what:
        inputs = {**original, "text": text, **_add_last_states(builder, evaluate, text)}
        _add_measurement(builder, name, "divergence", evaluate, inputs, {})
    if "latency" in what:
        rival = rivals.rival_of(name, builder.nodes)
        beside = {**original, "rival": rival} if rival else original
        _add_measurement(builder, name, "latency", profile, beside, here)
    if "memory" in what:
        _add_measurement(builder, name, "memory", profile, {}, here)


def _add_last_states(builder: "Builder", evaluate: StepConfig, text: str) -> dict[str, str]:
    """Add what divergences need of the original, once; nothing where its states cannot be had apart."""
    states: Any = plugins.internal("measure.last_states")
    if builder.nodes["original"].kind not in states.ACCEPTS:
        return {}
    if LAST_STATES not in builder.nodes:
        config = states.Config(**{key: value for key, value in evaluate if key in states.Config.model_fields})
        inputs = {"text": text}
        builder.add(
            LAST_STATES,
            "measure.last_states",
            config,
            "internal",
            parent="original",
            inputs=inputs,
            seed=0,
        )
    return {"states": LAST_STATES}


def _measure_quality(builder: "Builder", name: str, evaluate: Evaluate) -> None:
    inputs = {} if name == "original" else {"original_quality": "original/quality"}
    if evaluate.uses_demo_tasks:
        inputs["tasks"] = _add_tasks(builder)
    with builder.at("evaluate", "tasks"):
        plugins.internal("data.task_names").check_tasks(evaluate.tasks, evaluate.task_folder)
    if evaluate.chat_template:
        with builder.at("evaluate", "chat_template"):
            builder.check_chat_template("original")
    asked = package_versions(("lm-eval",))
    if evaluate.task_folder:
        asked["task_folder"] = folder_content(evaluate.task_folder, builder.memo)
    _add_measurement(builder, name, "quality", evaluate, inputs, asked)


def _add_measurement(
    builder: "Builder",
    name: str,
    what: str,
    section: StepConfig,
    inputs: Mapping[str, str],
    also: Mapping[str, str],
) -> None:
    use = f"measure.{what}"
    config_class = plugins.internal(use).Config
    config = config_class(**{key: value for key, value in section if key in config_class.model_fields})
    content = {**config.model_dump(mode="json"), **also}
    builder.add(
        f"{name}/{what}", use, config, "measurement", parent=name, inputs=inputs, seed=0, content=content
    )


def _add_tasks(builder: "Builder") -> str:
    if "data/tasks" not in builder.nodes:
        tasks = plugins.internal("data.tasks")
        builder.add("data/tasks", "data.tasks", tasks.Config(), "data", seed=0)
    return "data/tasks"
