"""The options of `moxserve export`, under headings. Most are keys of a pipeline's `export:` and override them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import click

from moxserve.cli.paths import ExistingPath, LocalPath
from moxserve.errors import UsageError

__all__ = ["GroupedCommand", "apply_options", "stage_changes"]

# Options that are no keys of the pipeline's stage.
_NO_KEYS = {
    "version", "checkpoint", "check_eval", "dry_run", "as_json", "model_fn", "inputs", "outputs", "tags", "rows",
}  # fmt: skip


class _Option(click.Option):
    """An option that knows its heading."""

    def __init__(self, *args: Any, group: str, **values: Any) -> None:
        super().__init__(*args, **values)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group."""
        params = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for group, options in groupby(params, key=lambda option: getattr(option, "group", "Other")):
            rows = [row for option in options if (row := option.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)


def _batch_sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Read `1,8,32`."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",") if word.strip()]
    sizes = [int(word) if word.isdecimal() else 0 for word in words]
    if not sizes or min(sizes) < 1:
        expected = "whole numbers of at least 1 with commas between, such as 1,8,32"
        raise click.BadParameter(f"{value!r}: expected {expected}", ctx, param)
    return sizes


def _precisions(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Read `float32,int8`."""
    from moxserve.export.targets import parse_targets

    if value is None:
        return None
    try:
        return tuple(target.precision for target in parse_targets(str(param.name), value))
    except UsageError as error:
        raise click.BadParameter(f"{error.message} (SOURCE goes before it)", ctx, param) from None


def _words(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:  # noqa: ARG001 - click gives it
    """Read `a,b`."""
    return None if value is None else [word.strip() for word in value.split(",") if word.strip()]


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Read `NAME=...`, any number of times."""
    for text in value:
        if "=" not in text or text.startswith("="):
            raise click.BadParameter(f"{text!r}: expected NAME=…", ctx, param)
    names = [text.partition("=")[0].strip() for text in value]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise click.BadParameter(f"{twice!r} is given twice", ctx, param)
    return value


_PRECISION: Mapping[str, Any] = {
    "is_flag": False, "flag_value": "float32", "callback": _precisions, "metavar": "[PRECISION,…]",
}  # fmt: skip

_GROUPS: Mapping[str, list[tuple[tuple[str, ...], dict[str, Any]]]] = {
    "Where to": [
        (("--tf-serving", "base_dir"), {
            "metavar": "DIR",
            "help": "Publish DIR/<version>/, which TensorFlow Serving reads; DIR may be s3://BUCKET/PREFIX. "
            "Default: export.tf_serving of the pipeline."}),
        (("--model-name",), {
            "help": "Name that clients ask for. Default: export.model_name of the pipeline, or DIR's name."}),
        (("--version",), {
            "help": "Number or folder name; -1 for the next free number. Default: what the model says, or -1."}),
        (("--keep",), {
            "type": click.IntRange(min=1), "metavar": "N", "help": "Delete all but the newest N versions afterwards."}),
        (("--push",), {
            "metavar": "HOST:PORT", "help": "Wait until the server at this address (gRPC, or http:// for REST) "
            "serves the version."}),
        (("--report",), {
            "type": LocalPath("a version in a store has its report in assets.extra/report", file_okay=False),
            "metavar": "DIR",
            "help": "Also write report.json and report.html into this folder."}),
    ],
    "What it is made of": [
        (("--checkpoint",), {
            "type": click.Path(), "help": "Checkpoint prefix or folder. Default: the newest of the run."}),
        (("--model-fn",), {
            "metavar": "MODULE:NAME",
            "help": "For a checkpoint without a pipeline: the function that builds its model."}),
        (("--input", "inputs"), {
            "multiple": True, "callback": _pairs, "metavar": "NAME=SPEC",
            "help": "With --model-fn, an input as NAME=DTYPE[SHAPE], such as image=uint8[?,28,28,1], in order; of a "
            "frozen graph, NAME=TENSOR."}),
        (("--output", "outputs"), {
            "multiple": True, "callback": _pairs, "metavar": "NAME=TENSOR", "help": "An output of a frozen graph."}),
        (("--tags",), {
            "callback": _words, "metavar": "TAG,…", "help": "Tags of the SavedModel's graph. Default: serve."}),
        (("--rows",), {
            "type": ExistingPath(), "metavar": "FILE",
            "help": "Real rows for a source without a pipeline: .npz, .npy or JSON lines, by input name, or a folder "
            "of pictures; `labels` holds the right classes."}),
        (("--op-library", "op_libraries"), {
            "multiple": True, "metavar": "FILE",
            "type": LocalPath("copy the library here: mox.file.copy", exists=True, dir_okay=False),
            "help": "Library of custom operations that the model needs."}),
    ],
    "Variants": [
        (("--frozen",), {**_PRECISION, "help": "Add frozen graphs: float32 (the default), bfloat16."}),
        (("--onnx",), {**_PRECISION, "help": "Add ONNX models: float32, float16, dynamic, int8."}),
        (("--tflite",), {**_PRECISION, "help": "Add TFLite models: float32, float16, dynamic, int8."}),
        (("--openvino",), {**_PRECISION, "help": "Add OpenVINO models: float32, bfloat16, float16, int8."}),
        (("--signature",), {"metavar": "KEY", "help": "Signature that the variants serve. Default: serving_default."}),
        (("--transforms",), {
            "metavar": "TEXT", "help": "Graph transforms to run first, such as \"fold_constants "
            "remove_nodes(op=Identity)\"; '' for none. Default: safe ones, see docs/transforms.md."}),
        (("--grappler",), {
            "callback": _words, "metavar": "PASS,…",
            "help": "Passes of TensorFlow's graph optimizer to run on the graph."}),
        (("--xla/--no-xla",), {
            "default": None, "help": "Have XLA compile the frozen float32 variant when it is served."}),
        (("--opset",), {"type": click.IntRange(min=7), "help": "Opset of ONNX models. Default: 17."}),
    ],
    "Quantization": [
        (("--calibration",), {
            "type": click.Choice(["minmax", "entropy", "percentile"]),
            "help": "How the ranges of int8 are found. Default: minmax."}),
        (("--calibration-rows",), {
            "type": click.IntRange(min=1), "help": "Real rows to find them with. Default: 128."}),
        (("--percentile",), {
            "type": click.FloatRange(50, 100, min_open=True), "help": "For --calibration percentile. Default: 99.99."}),
        (("--per-channel/--per-tensor",), {
            "default": None, "help": "One scale for each output channel of a weight, or one for all. Default: each."}),
        (("--exclude",), {
            "multiple": True, "metavar": "PATTERN",
            "help": "Operations that stay in floating point, by shell pattern."}),
        (("--max-drop",), {
            "type": click.FloatRange(0, 1), "help": "Largest loss of int8, as a share of the rows, before operations "
            "are left in floating point; 1 for any. Default: 0.01."}),
    ],
    "Verification": [
        (("--samples",), {
            "type": click.IntRange(min=1),
            "help": "Real rows to verify and warm up with. Default: 64, or 256 when there are variants."}),
        (("--label",), {
            "metavar": "INPUT",
            "help": "The model_fn input that holds the right class. Default: label or labels."}),
        (("--atol",), {
            "type": click.FloatRange(min=0),
            "help": "Absolute difference that verification lets pass. Default: 1e-5."}),
        (("--rtol",), {
            "type": click.FloatRange(min=0), "help": "The same, relative to the reference. Default: 1e-4."}),
        (("--check-eval/--no-check-eval",), {
            "default": True, "help": "Compare with the EVAL graph too.  [default: check-eval]"}),
        (("--limit",), {
            "multiple": True, "metavar": "CONDITION",
            "help": "What a variant must meet or is dropped, such as \"int8.top1_agreement>=0.99\"."}),
        (("--require",), {
            "multiple": True, "metavar": "CONDITION",
            "help": "The same, but nothing is published; a variant's name alone must be there."}),
        (("--measure/--no-measure",), {
            "default": None, "help": "Measure speed, load time and memory of every variant. Default: measure."}),
    ],
    "Warmup": [
        (("--warmup/--no-warmup",), {"default": True, "help": "Write warmup records.  [default: warmup]"}),
        (("--warmup-batches",), {
            "callback": _batch_sizes, "metavar": "N,…", "help": "Batch sizes of the warmup records. Default: 1,8,32."}),
        (("--warmup-log", "warmup_logs"), {
            "multiple": True, "type": click.Path(),
            "help": "Request log of a server to take further records from: a file, a folder, or its filename_prefix."}),
    ],
    "Other": [
        (("--dry-run",), {"is_flag": True, "help": "Say what would be exported, and do nothing."}),
        (("--json", "as_json"), {"is_flag": True, "help": "Print the facts as JSON."}),
    ],
}  # fmt: skip


def apply_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command's function all the options."""
    options = [(names, {**values, "group": group}) for group, table in _GROUPS.items() for names, values in table]
    for names, values in reversed(options):
        command = click.option(*names, cls=_Option, **values)(command)
    return command


def stage_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a pipeline's export stage that the command line gives, with their values."""
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    changes = {key: value for key, value in given.items() if key not in _NO_KEYS}
    warmup, batches = changes.pop("warmup"), changes.pop("warmup_batches", None)
    if not warmup:
        changes["warmup"] = []
    elif batches is not None:
        changes["warmup"] = batches
    for key in ("exclude", "limit", "require", "warmup_logs", "op_libraries"):
        if key in changes:
            changes[key] = list(changes[key])
    return changes
