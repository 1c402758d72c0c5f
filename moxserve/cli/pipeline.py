"""`moxserve pipeline`: run, check and show YAML pipelines. Only `run` imports TensorFlow."""

from __future__ import annotations

import os
from typing import Any

import click

from moxserve.cli.main import LazyGroup
from moxserve.cli.told import QUIET, told_as

__all__ = ["pipeline"]


@click.group(
    cls=LazyGroup,
    lazy={},
    epilog="\b\nExamples:\n  moxserve pipeline validate pipelines/digits.yaml\n"
    "  moxserve pipeline run pipelines/digits.yaml --set run.max_number_of_steps=50",
)
def pipeline() -> None:
    """Run, check and show training pipelines."""


_FILE = click.argument("file", type=click.Path())
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace or add a value, such as run.max_number_of_steps=50; the value is YAML. May be repeated.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


@pipeline.command(
    epilog="\b\nExample:\n  moxserve pipeline run pipelines/digits.yaml --set optimizer.learning_rate=0.002"
)
@_FILE
@_SET
@click.option("--dry-run", is_flag=True, help="Say stage by stage what would happen, and do nothing.")
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on from a checkpoint in run.log_dir; --no-resume refuses to start where there is one.",
)
@QUIET
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object a line on stdout: what happens, the facts of the whole run last.",
)
def run(file: str, overrides: tuple[str, ...], dry_run: bool, resume: bool, quiet: bool, as_json: bool) -> None:
    """Run a pipeline: train, then export, evaluate and predict as it says."""
    if dry_run:
        _dry_run(file, overrides, as_json)
        return
    with told_as(as_json=as_json, quiet=quiet):
        result = _run(file, overrides, resume=resume, quiet=quiet)
    if not as_json and not quiet:
        _echo_result(result)


def _run(file: str, overrides: tuple[str, ...], *, resume: bool, quiet: bool) -> Any:
    """Run it, and tell of each stage as it begins."""
    from moxserve import talk
    from moxserve.cli.quiet import import_tensorflow
    from moxserve.cli.signals import told_when_interrupted
    from moxserve.pipeline.runner import run_pipeline

    def told(text: str) -> None:
        import_tensorflow()  # at the first stage: by then the file is checked, and a mistake in it was told at once
        talk.tell({"event": "stage", "stage": text})
        if not quiet:
            click.echo(f"== {text}", err=True)

    # Training has its own way to stop; the stages after it leave nothing half-made.
    with told_when_interrupted(lambda: "interrupted; what is finished stays, and the same command goes on from there"):
        result = run_pipeline(file, overrides, resume=resume, talk=told)
    talk.tell({"event": "pipeline", **result.to_json()})
    return result


def _echo_result(result: Any) -> None:
    """Print what came of a run."""
    for line in _summary(result):
        click.echo(line)
    if result.export is not None:
        from moxserve.cli.export_show import print_variants

        print_variants(result.export)
        for note in result.export.notes:
            click.echo(f"note: {note}", err=True)


def _dry_run(file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    from moxserve.cli.render import echo_json, echo_table
    from moxserve.config import load_pipeline
    from moxserve.pipeline.plan import plan

    stages = plan(load_pipeline(file, overrides, check=True))
    if as_json:
        echo_json([{"stage": name, "plugin": plugin or None, "does": does} for name, plugin, does in stages])
        return
    echo_table(("stage", "plugin", "would"), stages, wrap={"would": 40})


def _summary(result: Any) -> list[str]:
    """Write what came of a run, one line a fact."""
    train, export = result.report.train, result.export
    if result.role is not None:
        steps = f"{train.local_steps} steps, " if train is not None else ""
        return [f"{result.role}: {steps}{sum(result.seconds.values()):.1f} s; the chief does what follows"]
    lines = []
    if train is not None:
        done = f"trained to step {train.global_step}"
        if train.stop_reason == "already_trained":
            done = f"was trained to step {train.global_step} already"
        elif train.start_step:
            done += f", resumed at {train.start_step}"
        lines.append(f"{done}: {result.report.checkpoint}")
    if result.evaluate:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in result.evaluate.items())
        lines.append(f"evaluated on {result.evaluated} rows: {metrics}")
    if export is not None:
        lines.append(
            f"exported version {export.version}: {export.path} (max abs error {export.max_abs_error:.2e}, "
            f"{export.warmup_records} warmup records)"
        )
    predictions = result.predictions
    if predictions is not None:
        lines.append(f"predicted {predictions[1]} rows: {predictions[0]}")
    elif not result.evaluate and train is None:
        lines.append(f"predicted {result.report.rows} rows")
    lines.append(f"took {sum(result.seconds.values()):.1f} s; tensorboard --logdir {result.log_dir}")
    return lines


@pipeline.command(epilog="\b\nExample:\n  moxserve pipeline validate pipelines/digits.yaml")
@_FILE
@_SET
@click.option("--no-files", is_flag=True, help="Do not look at the data and modules that the pipeline names.")
@_JSON
def validate(file: str, overrides: tuple[str, ...], no_files: bool, as_json: bool) -> None:
    """Check a pipeline without TensorFlow: keys, types, plugins, and that data are there. `check` is the same."""
    from moxserve.cli.render import echo_json
    from moxserve.config import load_pipeline
    from moxserve.errors import ConfigError

    try:
        config = load_pipeline(file, overrides, check=not no_files).config
    except ConfigError as error:
        if as_json:
            echo_json({"path": file, "valid": False, "problems": error.problems})
        raise
    plugins = {name: getattr(stage, "plugin", None) for name, stage in config.stages().items()}
    if as_json:
        echo_json({"path": file, "valid": True, "problems": [], "stages": plugins})
        return
    told = ", ".join(f"{name} {plugin}" if plugin else name for name, plugin in plugins.items())
    click.echo(f"{file}: valid ({told})")


@pipeline.command("list", epilog="\b\nExample:\n  moxserve pipeline list pipelines")
@click.argument("folder", default="pipelines", type=click.Path())
@_JSON
def list_(folder: str, as_json: bool) -> None:
    """List the pipelines in a folder, valid or not."""
    from moxserve import file
    from moxserve.cli.render import echo_json, echo_table
    from moxserve.errors import UsageError

    if not file.is_directory(folder):
        raise UsageError(f"no such folder: {folder!r}", hint="moxserve pipeline list FOLDER")
    names = [name for name in file.list_directory(folder) if name.endswith((".yaml", ".yml"))]
    facts = [_facts(os.path.join(folder, name)) for name in names]
    if as_json:
        echo_json(facts)
        return
    rows = [(f["path"], f["run"], f["model"], f["description"] or f["problem"]) for f in facts]
    echo_table(("pipeline", "run", "model", "description"), rows, wrap={"description": 30})


def _facts(path: str) -> dict[str, Any]:
    from moxserve.config import load_pipeline
    from moxserve.errors import ConfigError

    try:
        config = load_pipeline(path).config
    except ConfigError as error:
        first = error.problems[0]
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        place = f"{first.line}:{first.column}: " if first.line else ""
        problem = f"not valid: {place}{first.key + ': ' if first.key else ''}{first.message}{more}"
        return {"path": path, "run": "", "model": "", "description": "", "problem": problem}
    return {
        "path": path,
        "run": config.run.plugin,
        "model": config.model.plugin,
        "description": config.description,
        "problem": "",
    }


@pipeline.command(epilog="\b\nExample:\n  moxserve pipeline show pipelines/digits.yaml --defaults")
@_FILE
@_SET
@click.option("--defaults", is_flag=True, help="Also print the values that the file leaves out.")
@_JSON
def show(file: str, overrides: tuple[str, ...], defaults: bool, as_json: bool) -> None:
    """Print a pipeline with variables and overrides filled in, as YAML."""
    from moxserve.cli.render import echo_json
    from moxserve.config import load_pipeline
    from moxserve.config.dump import to_data, to_yaml

    data = to_data(load_pipeline(file, overrides).config, defaults=defaults)
    if as_json:
        echo_json(data)
    else:
        click.echo(to_yaml(data), nl=False)


@pipeline.command(epilog="\b\nExample:\n  moxserve pipeline schema --output pipelines/pipeline.schema.json")
@click.option("--output", type=click.Path(dir_okay=False), help="File to write instead of standard output.")
def schema(output: str | None) -> None:
    """Print the JSON schema of pipeline files, which editors check and complete by."""
    import json

    from moxserve import file
    from moxserve.config.schema import pipeline_schema
    from moxserve.registry import discover

    text = json.dumps(pipeline_schema(discover()), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        file.write(output, text)
        click.echo(f"wrote {output}", err=True)


pipeline.add_command(validate, "check")
