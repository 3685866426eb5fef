"""A finished run of the quickstart, as a record: the numbers are made up, their shape is that of a real one."""

import math
from typing import Any

from compress.records import CurvePoint, Generation, Measurement, RunRecord, Size, StepRecord

TASKS = {"facts": 0.25, "agreement": 0.5, "sums": 0.25}
ITEMS = 500
ORIGINAL = (0.902, 0.964, 0.741)
"""The original's accuracy on each task."""

PIPELINE = """\
version: 1
name: quickstart
model: demo
evaluate: {tasks: [facts, agreement, sums]}
steps:
  - {name: narrow,  use: prune.width, target: {params: 70%}}
  - {name: shallow, use: prune.depth, target: {layers: 4}}
  - {name: recover, use: distill, teacher: original, tokens: 600k}
  - {name: int8,    use: quantize.bitsandbytes, bits: 8}
  - {name: int4,    use: quantize.rtn, bits: 4, from: recover}
  - {name: edge,    use: export.onnx, from: int4}
"""

FOX = "The capital of Varda is"
SUM = "12 plus 7 equals"


def measurement(name: str, value: float, unit: str, higher: bool = False, **more: Any) -> Measurement:
    return Measurement(name=name, value=value, unit=unit, higher_is_better=higher, **more)


def quality(
    accuracies: tuple[float, float, float], original: tuple[float, float, float]
) -> list[Measurement]:
    """Accuracy, paired change and flips a task, and their means."""
    found = []
    for task, now, before in zip(TASKS, accuracies, original, strict=True):
        width, labels = 1.96 * math.sqrt(now * (1 - now) / ITEMS), {"task": task}
        interval = {"low": now - width, "high": now + width, "n": ITEMS, "labels": labels}
        found.append(measurement("accuracy", now, "share", True, **interval))
        if accuracies != original:
            moved = abs(now - before) + 0.012
            half = 1.96 * math.sqrt(moved / ITEMS)
            change = {"low": now - before - half, "high": now - before + half, "n": ITEMS, "labels": labels}
            found.append(measurement("accuracy_change", now - before, "share", True, **change))
            found.append(measurement("flips", moved, "share", labels=labels, n=ITEMS))
    mean, reference = sum(accuracies) / 3, sum(original) / 3
    found.append(
        measurement("mean_accuracy", mean, "share", True, low=mean - 0.017, high=mean + 0.016, n=3 * ITEMS)
    )
    if accuracies != original:
        change = mean - reference
        interval = {"low": change - 0.009, "high": change + 0.009, "n": 3 * ITEMS}
        found.append(measurement("accuracy_change", change, "share", True, **interval))
    return found


def divergence(kl: float, same: float, perplexity: float) -> list[Measurement]:
    return [
        measurement("kl_divergence", kl, "nats/token", n=8192, low=kl * 0.96, high=kl * 1.04),
        measurement("kl_p99", 9 * kl, "nats/token", n=8192),
        measurement("same_top_token", same, "share", True, n=8192),
        measurement("perplexity", perplexity, ""),
        measurement("bits_per_byte", math.log2(perplexity) / 3.1, "bits/byte"),
    ]


def taken(
    accuracies: tuple[float, float, float],
    kl: float,
    same: float,
    perplexity: float,
    speedup: float,
    memory: float,
) -> list[Measurement]:
    """All that is measured of one model but the original."""
    return [*quality(accuracies, ORIGINAL), *divergence(kl, same, perplexity), *latency(speedup, memory)]


def latency(speedup: float, memory: float) -> list[Measurement]:
    """Two profiles, each beside the original's figure of the same process."""
    found = []
    for batch, prompt, first, each in ((1, 32, 6.1, 2.31), (8, 128, 31.5, 4.87)):
        labels = {"batch_size": batch, "prompt_tokens": prompt}
        ours = each / speedup
        found += [
            measurement(
                "time_to_first_token", first / speedup, "ms", labels=labels, beside={"original": first}, n=20
            ),
            measurement("time_per_output_token", ours, "ms", labels=labels, beside={"original": each}, n=20),
            measurement(
                "time_per_output_token_ratio",
                1 / speedup,
                "ratio",
                labels=labels,
                low=0.96 / speedup,
                high=1.04 / speedup,
                n=20,
            ),
            measurement(
                "tokens_per_second",
                1000 * batch / ours,
                "tokens/s",
                True,
                labels=labels,
                beside={"original": 1000 * batch / each},
            ),
            measurement(
                "prefill_tokens_per_second",
                1000 * batch * prompt / first * speedup,
                "tokens/s",
                True,
                labels=labels,
                beside={"original": 1000 * batch * prompt / first},
            ),
            measurement("peak_memory", memory + batch * 2e6, "bytes", labels=labels),
            measurement(
                "usd_per_million_output_tokens",
                0.4 * 1e3 * ours / 3600 / batch,
                "USD",
                labels=labels,
                beside={"original": 0.4 * 1e3 * each / 3600 / batch},
            ),
        ]
    return [*found, measurement("load_memory", memory, "bytes")]


def step(name: str, use: str, parent: str | None, size: tuple[int, int], **more: Any) -> StepRecord:
    parameters, weight_bytes = size
    made = Size(num_parameters=parameters, weight_bytes=weight_bytes)
    defaults: dict[str, Any] = {
        "kind": "hf",
        "role": "student",
        "key": f"{name}-3f6b12c0de45".ljust(32, "7"),
        "cached": False,
        "settings": {},
        "seconds": 4.2,
        "peak_memory_bytes": 612_000_000,
        "disk_bytes": weight_bytes + 84_211,
        "predicted": made,
        "realized": made,
        "estimated_seconds": 5.0,
        "estimated_peak_memory_bytes": 650_000_000,
    }
    return StepRecord(name=name, use=use, parent=parent, **{**defaults, **more})


def curve() -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            tokens=4096 * i,
            loss=0.11 + 1.4 * math.exp(-i / 22) + 0.03 * math.sin(i * 1.7),
            learning_rate=1e-3 * min(1.0, i / 15) * (0.5 + 0.5 * math.cos(math.pi * i / 150)),
            tokens_per_second=9800.0 + 40 * (i % 7),
        )
        for i in range(1, 148)
    )


def generations(first: str, second: str) -> tuple[Generation, ...]:
    return (Generation(prompt=FOX, text=first), Generation(prompt=SUM, text=second))


def sample_run(**changes: Any) -> RunRecord:
    """The quickstart, done; `changes` replace fields of the record."""
    steps = (
        step(
            "original",
            "models.demo",
            None,
            (2_836_416, 11_345_664),
            role="original",
            cached=True,
            seconds=138.4,
            measurements=[*quality(ORIGINAL, ORIGINAL), *divergence(0.0, 1.0, 3.41)[3:], *latency(1.0, 96e6)],
            generations=generations(" Ostrel. The river Ilm runs through it.", " 19. 3 plus 4 equals 7."),
            settings={"vocabulary": 1024, "hidden_size": 192, "layers": 6},
        ),
        step(
            "narrow",
            "prune.width",
            "original",
            (1_990_272, 7_961_088),
            settings={"target": {"params": "70%"}, "importance": "activation", "align": 16, "samples": 256},
            facts={"intermediate_size": [512, 320], "kv_groups": [3, 2], "hidden_size": [192, 176]},
            measurements=taken((0.552, 0.871, 0.403), 0.713, 0.689, 6.52, 1.3, 92e6),
            generations=generations(" Varda. The river river runs", " 14. 3 plus 4 equals 9."),
        ),
        step(
            "shallow",
            "prune.depth",
            "narrow",
            (1_418_208, 5_672_832),
            settings={"target": {"layers": 4}, "importance": "block_influence"},
            facts={"removed_layers": [2, 3], "scores": [0.41, 0.22, 0.07, 0.09, 0.18, 0.52]},
            measurements=taken((0.318, 0.702, 0.291), 1.864, 0.441, 19.7, 1.9, 90e6),
            generations=generations(" the the river of the the", " 1 1 1 1 1"),
        ),
        step(
            "recover",
            "distill",
            "shallow",
            (1_418_208, 5_672_832),
            settings={"teacher": "original", "tokens": 600_000, "divergence": "forward_kl", "temperature": 1.0},
            inputs={"teacher": "original", "data": "recovery"},
            seconds=71.9,
            estimated_seconds=64.0,
            peak_memory_bytes=893_000_000,
            curve=curve(),
            warnings=("This machine has no bfloat16 units: trained in float32, about half as fast.",),
            measurements=taken((0.872, 0.955, 0.712), 0.061, 0.931, 3.62, 1.9, 90e6),
            generations=generations(" Ostrel. The river Ilm runs past it.", " 19. 3 plus 4 equals 7."),
        ),
        step(
            "int8",
            "quantize.bitsandbytes",
            "recover",
            (1_418_208, 1_862_144),
            kind="bitsandbytes",
            settings={"bits": 8},
            measurements=taken((0.870, 0.957, 0.709), 0.063, 0.929, 3.63, 0.8, 99e6),
            generations=generations(" Ostrel. The river Ilm runs past it.", " 19. 3 plus 4 equals 7."),
        ),
        step(
            "int4",
            "quantize.rtn",
            "recover",
            (1_418_208, 1_163_520),
            kind="packed",
            settings={"bits": 4, "group_size": 32, "keep": ["lm_head"]},
            measurements=taken((0.861, 0.949, 0.702), 0.083, 0.914, 3.71, 1.2, 91e6),
            generations=generations(" Ostrel. The river Ilm runs past it.", " 19. 3 plus 4 equals 7."),
        ),
        step(
            "edge",
            "export.onnx",
            "int4",
            (1_418_208, 1_201_664),
            kind="onnx",
            settings={"precision": "int4", "opset": 21},
            facts={"largest_logit_difference": 2.1e-05},
            measurements=taken((0.861, 0.949, 0.703), 0.083, 0.914, 3.71, 5.2, 61e6),
            generations=generations(" Ostrel. The river Ilm runs past it.", " 19. 3 plus 4 equals 7."),
        ),
        step(
            "original_int8",
            "quantize.rtn",
            "original",
            (2_836_416, 3_284_992),
            role="baseline",
            kind="packed",
            settings={"bits": 8, "group_size": 32},
            measurements=taken((0.901, 0.964, 0.742), 0.0021, 0.989, 3.41, 0.9, 98e6),
            generations=generations(" Ostrel. The river Ilm runs through it.", " 19. 3 plus 4 equals 7."),
        ),
        step(
            "original_int4",
            "quantize.rtn",
            "original",
            (2_836_416, 1_931_264),
            role="baseline",
            kind="packed",
            settings={"bits": 4, "group_size": 32},
            measurements=taken((0.874, 0.951, 0.702), 0.047, 0.934, 3.55, 1.0, 93e6),
            generations=generations(" Ostrel. The river Ilm runs through.", " 19. 3 plus 4 equals 8."),
        ),
    )  # fmt: skip
    run = RunRecord(
        id="quickstart-20250301-101500",
        name="quickstart",
        status="done",
        started="2025-03-01T10:15:00Z",
        finished="2025-03-01T10:20:12Z",
        seconds=312.0,
        command="compress run pipelines/quickstart.yaml",
        pipeline=PIPELINE,
        seed=7,
        environment={
            "compress": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "processor": "2 cores, x86_64, AVX-512",
            "memory": "8 GB",
        },
        usd_per_hour=0.4,
        chance=TASKS,
        tasks=tuple(TASKS),
        steps=steps,
    )
    return run.model_copy(update=changes)


def plain(text: str) -> str:
    """The text with the typographer's spaces, crosses and minuses made those of a keyboard."""
    return text.translate({0xA0: " ", 0xD7: "x", 0x2212: "-"})


def without(run: RunRecord, *names: str) -> RunRecord:
    """The run, as if the measurements of those names (all, without names) had never been taken."""

    def kept(one: StepRecord) -> StepRecord:
        left = tuple(m for m in one.measurements if names and m.name not in names)
        return one.model_copy(update={"measurements": left})

    return run.model_copy(update={"steps": tuple(map(kept, run.steps))})


def with_step(run: RunRecord, name: str, /, **changes: Any) -> RunRecord:
    """The run with some fields of one step replaced."""
    steps = tuple(s.model_copy(update=changes) if s.name == name else s for s in run.steps)
    return run.model_copy(update={"steps": steps})
