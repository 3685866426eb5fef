"""A student leaves the store: its files, and a model card that says what it is, what it scored and how it was made."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from compress.engine.store import Store
from compress.errors import InputError, nearest
from compress.records import Measurement, RunRecord, StepRecord

HOW_TO_RUN = {
    "hf": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))""",
    "onnx": """from pathlib import Path

from compress.backends.onnxruntime import open
from compress.backends.interface import OpenOptions
from compress.records import Artifact
from transformers import AutoTokenizer

model = open(Artifact(key="", kind="onnx", path=Path(".")), OpenOptions())
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(inputs["input_ids"], inputs["attention_mask"], new_tokens=40)[0]))""",
}
HOW_TO_RUN["packed"] = "# pip install compressed-tensors\n" + HOW_TO_RUN["hf"]
HOW_TO_RUN["bitsandbytes"] = "# pip install bitsandbytes accelerate\n" + HOW_TO_RUN["hf"]


def export_student(store: Store, record: RunRecord, step: str, folder: Path) -> Path:
    """Copy one step's model into `folder`, which must not exist or be empty, and write its card. Return the folder.

    Raises `InputError` for an unknown step, a step whose artifact is gone, and a folder with something in it.
    """
    names = [s.name for s in record.steps]
    if step not in names:
        raise InputError(
            f"run {record.id} has no step '{step}'{nearest(step, names)} Allowed: {', '.join(names)}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; name a new one")
    found = record.step(step)
    artifact = store.get(found.key)
    if artifact is None:
        raise InputError(f"the files of '{step}' are no longer in the store; `compress run` makes them again")
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(artifact.path, staged, ignore=shutil.ignore_patterns("COMMIT", "manifest.json"))
    (staged / "README.md").write_text(model_card(record, found), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    staged.rename(folder)
    return folder


def model_card(record: RunRecord, step: StepRecord) -> str:
    """Return the card (Markdown): what it is, how to run it, what it scored, how it was made."""
    return "\n".join(
        [
            f"# {record.name}: {step.name}",
            "",
            *_warning(record),
            f"{step.realized.num_parameters:,} parameters, {step.realized.weight_bytes:,} bytes of weights, "
            f"made by `compress` {record.environment.get('compress', '')} (run `{record.id}`).",
            "",
            "## How to run it",
            "",
            "```python",
            HOW_TO_RUN[step.kind],
            "```",
            "",
            "## What it scored",
            "",
            "| measurement | this model | original | unit | n |",
            "|---|---|---|---|---|",
            *_scores(record, step),
            "",
            "## How it was made",
            "",
            *[
                f"{number}. `{s.name}`: {s.use} {_settings(s)}"
                for number, s in enumerate(_lineage(record, step), 1)
            ],
            "",
            "The pipeline file:",
            "",
            "```yaml",
            record.pipeline.rstrip().replace("```", "'''"),
            "```",
            "",
        ]
    )


def _warning(record: RunRecord) -> list[str]:
    return ["**A rehearsal on a tiny random model: not for use.**", ""] if record.rehearsal else []


def _scores(record: RunRecord, step: StepRecord) -> Iterator[str]:
    originals = {(m.name, str(m.labels)): m.value for m in record.step("original").measurements}
    for m in step.measurements:
        reference = originals.get((m.name, str(m.labels)), m.beside.get("original"))
        labels = " ".join(f"{key}={value}" for key, value in m.labels.items())
        beside = "" if reference is None else _number(reference)
        yield f"| {m.name} {labels} | {_number(_paired(m, reference))} | {beside} | {m.unit} | {m.n or ''} |"


def _paired(m: Measurement, reference: float | None) -> float:
    """Return a figure, of one taken in turns with the original's their ratio times the original's own.

    What was measured at different moments would contradict the ratios of the report.
    """
    taken = m.beside.get("original")
    return m.value if not taken or reference is None else m.value / taken * reference


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _lineage(record: RunRecord, step: StepRecord) -> list[StepRecord]:
    chain = [step]
    while chain[0].parent is not None:
        chain.insert(0, record.step(chain[0].parent))
    return chain


def _settings(step: StepRecord) -> str:
    return ", ".join(f"{key}: {value}" for key, value in step.settings.items() if value is not None)
