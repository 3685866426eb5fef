"""The console script: every command is one call of the public functions in `compress.api`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from compress import __version__
from compress.errors import CompressError, InputError

PIPELINE = click.argument("pipeline", type=click.Path(path_type=Path))


def _not_nan(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """Refuse what is no number: it lies in every range, and ends no wait."""
    if value is not None and value != value:
        raise click.BadParameter("'nan' is no number of seconds")
    return value


SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. --set seed=3."
)
DEVICE = click.option(
    "--device",
    metavar="NAME",
    help="Plan for another machine: cpu, h100-80gb, h200, 8xh100-80gb, 4090, …",
)
TEST = click.option(
    "--test", "rehearsal", is_flag=True, help="Rehearse on a tiny random model, offline, in seconds."
)


class Commands(click.Group):
    """Turns the package's errors into one clear message and the documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CompressError as error:
            if ctx.params.get("debug"):
                raise
            _fail(str(error), error.exit_code)
        except OSError as error:
            from compress.engine.room import disk_full, disk_is_full
            from compress.environment import home

            if not disk_is_full(error) or ctx.params.get("debug"):
                raise
            _fail(disk_full(home(), error), 5)
        except KeyboardInterrupt:
            _fail("stopped by Ctrl-C", 130)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show Python's traceback when something fails.")
def main(debug: bool) -> None:
    """Make a language model smaller, and prove what it cost.

    Example: compress run pipelines/quickstart.yaml

    \b
    Exit codes: 0 done, 2 wrong pipeline file or argument, 3 a step failed, 4 a quality gate failed,
    5 does not fit, 75 preempted (run again to resume), 130 interrupted.
    """


@main.command()
@PIPELINE
@SET
@TEST
@click.option(
    "--until",
    metavar="NAME",
    help="Stop after this step, or once what stands under this name of data: is packed.",
)
@click.option(
    "--from", "redo_from", metavar="STEP", help="Make this step, and all that follows from it, anew."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=86_400),
    callback=_not_nan,
    envvar="COMPRESS_GRACE",
    metavar="SECONDS",
    help="How long a step may take to save its work when the run is stopped. Left out: as long as its last checkpoint "
    "suggests, at least 20.",
)
@click.option("--report-folder", type=click.Path(path_type=Path), default=Path("reports"), show_default=True)
def run(
    pipeline: Path,
    overrides: Sequence[str],
    rehearsal: bool,
    until: str | None,
    redo_from: str | None,
    dry_run: bool,
    grace: float | None,
    report_folder: Path,
) -> None:
    """Run a pipeline: everything not done yet, then the report.

    Example: compress run pipelines/quickstart.yaml --set seed=3
    """
    from compress import api, report
    from compress.engine.events import while_it_is_there
    from compress.engine.live_table import for_terminal
    from compress.errors import Interrupted, Preempted

    loaded = api.load_pipeline(pipeline, overrides)
    if dry_run:
        _print_plan(pipeline, overrides, rehearsal, until=until, redo_from=redo_from)
        return
    again = f"Run the same command again to go on: {' '.join(['compress', *sys.argv[1:]])}"
    try:
        listener = while_it_is_there(for_terminal(sys.stderr))
        record = api.run(
            loaded, until=until, redo_from=redo_from, rehearsal=rehearsal, listener=listener, grace=grace
        )
    except (Interrupted, Preempted) as error:
        raise type(error)(f"{error}. Everything finished is kept. {again}") from error
    except CompressError as error:
        if error.run:
            _report_what_there_is(error.run, report_folder)
        raise
    path = api.write_report(record, report_folder)
    click.echo(report.summary(record))
    click.echo(f"Report: {path}")


@main.command()
@PIPELINE
@SET
@TEST
@DEVICE
def plan(pipeline: Path, overrides: Sequence[str], rehearsal: bool, device: str | None) -> None:
    """Print what would be done: sizes, memory, time, and why a step is not cached.

    Example: compress plan pipelines/quickstart.yaml

    With --device, for a machine that you do not have: one card by its name, or several (8xh100-80gb). Your own cards
    stand in $COMPRESS_HOME/cards.yaml. Where the hub cannot be asked, models are planned by their published shapes.

    Ends with exit code 5 where `compress run` would refuse for want of memory or disk.
    """
    _print_plan(pipeline, overrides, rehearsal, device)


@main.command()
@PIPELINE
@SET
def validate(pipeline: Path, overrides: Sequence[str]) -> None:
    """Check a pipeline file and its plan; run nothing.

    Example: compress validate my.yaml
    """
    from compress import api

    made = api.make_plan(api.load_pipeline(pipeline, overrides), assume=True)
    click.echo(f"{pipeline}: valid, {len(made.models)} models")
    for each in made.assumed:
        click.echo(f"  not looked up on the hub: {each}")


@main.command()
@click.argument("run_name", metavar="[RUN]", required=False)
def status(run_name: str | None) -> None:
    """Show how far a run is; without a name, all runs.

    Example: compress status quickstart
    """
    from compress.engine.runs import all_runs, find_run
    from compress.engine.status import status_lines

    records = [find_run(run_name)] if run_name else all_runs()
    for line in status_lines(records, detailed=run_name is not None):
        click.echo(line)


@main.command()
@click.argument("run_name", metavar="RUN")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("reports"), show_default=True)
def report(run_name: str, folder: Path) -> None:
    """Write a run's HTML report again and print its path.

    Example: compress report quickstart
    """
    from compress import api

    click.echo(api.write_report(api.find_run(run_name), folder))


@main.command()
@click.argument("run_a", metavar="A")
@click.argument("run_b", metavar="B")
def compare(run_a: str, run_b: str) -> None:
    """Show what differs between two runs.

    Example: compress compare quickstart-1a2b3c4d quickstart-5e6f7a8b
    """
    from compress import api

    click.echo(api.compare(api.find_run(run_a), api.find_run(run_b)))


@main.command()
@click.argument("student", metavar="RUN:STEP")
@click.argument("folder", type=click.Path(path_type=Path))
def export(student: str, folder: Path) -> None:
    """Copy a student into a folder, with a model card.

    Example: compress export quickstart:int4 ./my-model
    """
    from compress import api

    run_name, colon, step = student.rpartition(":")
    if not colon or not step:
        raise InputError(f"'{student}' is not RUN:STEP, such as quickstart:int4")
    click.echo(api.export_student(api.find_run(run_name), step, folder))


@main.command()
@click.argument("model")
@click.option(
    "--target",
    default="50%",
    show_default=True,
    help="Parameters to keep: 50%, 4.0B, 350M. Where a large vocabulary is cut, a share is of the other parameters.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE",
    help="Text of yours to learn from and be measured on: a file, or a folder of .txt and .md; may be repeated.",
)
@DEVICE
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="File to write; standard output by default."
)
def init(model: str, target: str, texts: Sequence[str], device: str | None, output: Path | None) -> None:
    """Write a commented pipeline for a checkpoint: a local folder or a hub id.

    Example: compress init ./my-checkpoint --text my_texts -o my.yaml

    It is sized for this machine, or for that of --device: tokens to train on, items and lengths to measure.
    """
    from compress import api
    from compress.machine import machine_named, planning_for, this_machine

    if output is not None and output.exists():
        raise InputError(f"{output} exists already; name another file")
    with planning_for(this_machine() if device is None else machine_named(device)):
        text = api.scaffold(model, target, texts)
    if output is None:
        click.echo(text, nl=False)
        return
    output.write_text(text, encoding="utf-8")
    click.echo(f"{output} written. Next: compress run {output} --test, then compress run {output}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors.

    Example: compress schema > pipeline.schema.json
    """
    import json

    from compress import api

    click.echo(json.dumps(api.pipeline_schema(), indent=2))


@main.command()
def doctor() -> None:
    """Say what this machine can do, what is missing, and how to mend it.

    Example: compress doctor
    """
    from compress import api

    findings = api.doctor()
    for finding in findings:
        click.echo(f"{'ok  ' if finding.well else 'MEND'}  {finding.what}: {finding.found}")
        if not finding.well:
            click.echo(f"      {finding.remedy}")
    sys.exit(0 if all(finding.well for finding in findings) else 1)


@main.command()
@click.option(
    "--keep-runs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Runs to keep of each pipeline.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def gc(keep_runs: int, dry_run: bool) -> None:
    """Delete what no kept run needs.

    Example: compress gc --dry-run
    """
    from compress import api
    from compress.quantities import format_file_size

    num_entries, num_bytes = api.collect_garbage(keep_runs=keep_runs, dry_run=dry_run)
    click.echo(
        f"{'Would free' if dry_run else 'Freed'} {format_file_size(num_bytes)} in {num_entries} entries"
    )


def _print_plan(
    pipeline: Path,
    overrides: Sequence[str],
    rehearsal: bool,
    device: str | None = None,
    until: str | None = None,
    redo_from: str | None = None,
) -> None:
    """Print the plan; exit with the code that a run would where it would refuse for want of room."""
    from compress import api
    from compress.engine.plan_table import plan_table, refusals
    from compress.engine.store import Store
    from compress.errors import DoesNotFit
    from compress.machine import machine_named, planning_for, this_machine

    loaded = api.load_pipeline(pipeline, overrides)
    cost = loaded.cost.usd_per_hour if loaded.cost else None
    with planning_for(this_machine() if device is None else machine_named(device)):
        made = api.cut(api.make_plan(loaded, rehearsal=rehearsal, assume=True), until, redo_from)
        click.echo(plan_table(made, loaded.name, Store(), cost))
        if refusals(made, Store()):
            sys.exit(DoesNotFit.exit_code)


def _report_what_there_is(run_name: str, folder: Path) -> None:
    """After a failure: the report of what was reached, if anything was."""
    from compress import api
    from compress.engine.room import unless_full

    try:
        record = api.find_run(run_name)
    except InputError:
        return
    if not record.steps:
        return
    with unless_full():
        click.echo(f"Report of what was reached: {api.write_report(record, folder)}", err=True)
