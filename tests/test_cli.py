"""What a user meets on the command line: exit codes, one clear message, never a traceback."""

import json
import shutil

import pytest
from click.testing import CliRunner

from compress.cli import main
from compress.engine.runs import save_record
from compress.errors import GateFailed
from tests.models.tiny import write_tiny
from tests.report.sample_run import sample_run

PIPELINE = """
version: 1
name: mine
model: {{path: checkpoint, tokenizer: bytes}}
steps:
{steps}
"""
NARROW = "  - {name: narrow, use: prune.width, target: {params: 50%}}"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "checkpoint", "llama")
    (tmp_path / "my.yaml").write_text(PIPELINE.format(steps=NARROW))
    return tmp_path


def call(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_a_valid_pipeline_is_called_valid(workplace):
    assert call("validate", "my.yaml") == (0, "my.yaml: valid, 2 models\n")


def test_the_plan_shows_exact_sizes_and_runs_nothing(workplace):
    code, output = call("plan", "my.yaml")
    assert code == 0 and "narrow" in output and "to run (new)" in output
    assert call("run", "my.yaml", "--dry-run") == (0, output)
    assert not (workplace / "home" / "store").exists()


def break_checkpoint(folder, how):
    if how == "missing":
        shutil.rmtree(folder)
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    else:
        config = json.loads((folder / "config.json").read_text())
        config["model_type"] = "lama"
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "checkpoint"),
        ("empty", "config.json"),
        ("truncated", "model.safetensors"),
        ("pickle", "holds its weights as pickles"),
        ("architecture", "did you mean 'llama'"),
    ],
)
def test_a_broken_checkpoint_is_refused_before_anything_runs(workplace, how, said):
    break_checkpoint(workplace / "checkpoint", how)
    code, output = call("run", "my.yaml")
    assert code == 2 and output.startswith("Error: ") and said in output
    assert not (workplace / "home" / "store").exists()


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("  - {name: narrow, use: prune.width, target: {params: 1%}}", "at least 7.29k"),
        (
            "  - {name: q, use: quantize.bitsandbytes, bits: 8}\n  - {name: edge, use: export.onnx}",
            "write `from: original`",
        ),
        ("  - {name: q, use: quantize.rtn, group_size: 48}", "group_size"),
        ("  - {name: t, use: distill, tokens: 1k, teacher: orignal}", "did you mean 'original'"),
    ],
)
def test_an_impossible_plan_names_the_place_and_the_way_out(workplace, steps, said):
    (workplace / "my.yaml").write_text(PIPELINE.format(steps=steps))
    code, output = call("validate", "my.yaml")
    assert code == 2 and said in output and "my.yaml:" in output


def test_a_checkpoint_without_tokenizer_says_what_to_write(workplace):
    text = (workplace / "my.yaml").read_text().replace(", tokenizer: bytes", "")
    (workplace / "my.yaml").write_text(text)
    code, output = call("validate", "my.yaml")
    assert code == 2 and "tokenizer: PATH" in output


def test_an_unknown_step_on_the_command_line_is_named_with_the_nearest(workplace):
    code, output = call("run", "my.yaml", "--until", "narow")
    assert code == 2 and "did you mean 'narrow'" in output


def test_a_plan_that_a_run_would_refuse_is_printed_and_ends_with_the_code_of_what_does_not_fit(
    workplace, monkeypatch
):
    monkeypatch.setattr("compress.engine.room._free_bytes", lambda folder: 0)
    for command in (["plan", "my.yaml"], ["run", "my.yaml", "--dry-run"]):
        code, output = call(*command)
        assert (
            code == 5 and "narrow" in output and "`compress run` would refuse: the run will write" in output
        )


def test_commands_about_runs_say_so_when_there_is_none(workplace):
    for command in (
        ["report", "mine"],
        ["status", "mine"],
        ["compare", "a", "b"],
        ["export", "mine:x", "out"],
    ):
        code, output = call(*command)
        assert code == 2 and "no run called" in output
    assert call("status")[0] == 0


@pytest.fixture
def finished(workplace):
    record = sample_run(id="mine-12345678", name="mine")
    save_record(record, workplace / "home" / "runs" / record.id)
    return record


def test_a_finished_run_can_be_asked_about(workplace, finished):
    assert finished.id in call("status")[1]
    code, output = call("status", "mine")
    assert code == 0 and all(step.name in output for step in finished.steps)
    code, output = call("report", "mine")
    assert code == 0 and (workplace / output.strip()).exists()
    assert call("compare", "mine", finished.id)[0] == 0


def untouched(workplace, *arguments):
    """Whether the command, which is refused, leaves record and report of the finished run as they are."""
    reports = workplace / "reports"
    call("report", "mine")
    (report,) = reports.iterdir()
    report.write_text("as it was")
    before = (workplace / "home" / "runs" / "mine-12345678" / "run.json").read_bytes()
    code, output = call(*arguments)
    assert code == 2 and "Report" not in output
    after = (workplace / "home" / "runs" / "mine-12345678" / "run.json").read_bytes()
    return [*reports.iterdir()] == [report] and report.read_text() == "as it was" and after == before


@pytest.mark.parametrize("option", ["--until", "--from"])
def test_a_step_that_does_not_exist_leaves_the_report_of_the_finished_run_alone(workplace, finished, option):
    assert untouched(workplace, "run", "my.yaml", option, "nonsense")


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_plan_that_cannot_be_made_leaves_the_report_of_the_finished_run_alone(workplace, finished, how):
    break_checkpoint(workplace / "checkpoint", how)
    assert untouched(workplace, "run", "my.yaml")


def test_what_is_made_anew_must_be_among_what_is_made(workplace):
    code, output = call("run", "my.yaml", "--until", "original", "--from", "narrow")
    assert code == 2 and "--from narrow: that comes after --until original" in output
    code, output = call("run", "my.yaml", "--dry-run", "--until", "narow")
    assert code == 2 and "did you mean 'narrow'" in output


def test_exporting_from_a_run_whose_files_are_gone_says_how_to_get_them(workplace, finished):
    code, output = call("export", "mine:int4", "out")
    assert code == 2 and "no longer in the store" in output and not (workplace / "out").exists()
    code, output = call("export", "mine:int5", "out")
    assert code == 2 and "did you mean 'int" in output
    code, output = call("export", "mine", "out")
    assert code == 2 and "RUN:STEP" in output


def test_init_writes_a_pipeline_that_is_valid_and_never_overwrites(workplace):
    assert call("init", "checkpoint", "-o", "new.yaml")[0] == 0
    assert call("validate", "new.yaml")[0] == 0
    code, output = call("init", "checkpoint", "-o", "new.yaml")
    assert code == 2 and "exists already" in output


def test_a_failed_gate_has_its_own_exit_code(workplace, monkeypatch):
    def fail(*_, **__):
        raise GateFailed("a quality gate failed: int4: max_quality_drop is 0.1, the limit is 0.05")

    monkeypatch.setattr("compress.api.run", fail)
    code, output = call("run", "my.yaml")
    assert code == 4 and "max_quality_drop" in output


def test_collecting_garbage_keeps_what_the_latest_run_needs(workplace):
    assert call("gc") == (0, "Freed 0 B in 0 entries\n")


def test_the_schema_is_printed_as_json(workplace):
    code, output = call("schema")
    assert code == 0 and json.loads(output)["$schema"]


def test_debug_shows_the_traceback(workplace):
    result = CliRunner().invoke(main, ["--debug", "validate", "nowhere.yaml"])
    assert result.exception is not None and not isinstance(result.exception, SystemExit)
