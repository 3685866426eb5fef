"""What `compress init` writes is valid and can be rehearsed whatever the family: what does not fit is left out."""

import pytest

from compress import api
from compress.pipeline.scaffold import scaffold
from compress.pipeline.schema import load_pipeline
from tests.models.tiny import ENCODERS, FAMILIES, write_tiny

LEFT_OUT = {
    "gpt2": ("quantize.rtn", "export.onnx"),
    "gpt_neox": ("export.onnx",),
    "olmoe": ("quantize.rtn", "export.onnx"),
    "qwen3_moe": ("quantize.rtn", "export.onnx"),
    **dict.fromkeys(ENCODERS, ("distill", "export.onnx")),
}


SAMPLE = ("bert", "gemma3_text", "gpt2", "gpt_neox", "olmoe", "phi", "qwen3")
"""One of each kind; the others only in the slow suite."""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The pipeline that is written for a tiny checkpoint."""
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))

    def write(family, **changes):
        folder = write_tiny(tmp_path / "checkpoint", family, **changes)
        (tmp_path / "my.yaml").write_text(scaffold(str(folder)))
        return load_pipeline(tmp_path / "my.yaml")

    return write


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in FAMILIES],
)
def test_what_is_written_for_a_family_can_be_planned_and_rehearsed(written, family):
    pipeline = written(family)
    for rehearsal in (False, True):
        assert api.make_plan(pipeline, rehearsal=rehearsal).models
    taken, left_out = {step.use for step in pipeline.steps}, LEFT_OUT.get(family, ())
    assert taken == {"prune.width", "distill", "quantize.rtn", "export.onnx"} - {*left_out}
    for use in left_out:
        assert f"({use}): " in pipeline.text.replace("\n  # ", " "), "the file says why"
