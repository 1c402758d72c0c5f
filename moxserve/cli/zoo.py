"""`moxserve models list | show | check | convert`: the networks of the model zoo, and checkpoints for them.

`list` and most of `show` read a table of the package, so they need no TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from moxserve.inspect.report import Report, Table
    from moxserve.tensorflow.executor.matching import CheckpointReport
    from moxserve.tensorflow.nets.checkpoints import Converted

__all__ = ["check_network", "convert_weights", "list_networks", "show_network"]

_LIST_EPILOG = """\b
Examples:
  moxserve models list
  moxserve models list "*resnet*" --sort parameters
  moxserve models list --format markdown

\b
PATTERN is a name, a part of one, or a shell pattern. Parameters are the trained ones, at the classes shown.
GFLOPs are of one image of the size shown; a multiplication and an addition are two.
"""

_SHOW_EPILOG = """\b
Examples:
  moxserve models show resnet_v1_50
  moxserve models show inception_v3 --end-points --image-size 384
  moxserve models show resnet_v1_50 --variables --num-classes 6 --json

\b
Tables, and sizes or classes other than the network's own, build it, which needs TensorFlow.
"""

_CHECK_EPILOG = """\b
Examples:
  moxserve models check resnet_v1_50 downloads/resnet_v1_50.ckpt
  moxserve models check resnet_v1_50 downloads/resnet_v1_50.ckpt --num-classes 6 --exclude resnet_v1_50/logits
  moxserve models check mobilenet_v2 downloads/mobilenet_v2_1.0_224.ckpt --moving-averages

\b
CHECKPOINT is a prefix, a single file as TF-Slim published them, or a folder, whose newest is taken.

\b
Exit codes: 0 it fits; 1 there is no checkpoint, or it cannot be read; 2 wrong usage; 5 variables that are
not left out are missing in it, or of another shape.
"""

_CONVERT_EPILOG = """\b
Examples:
  moxserve models convert resnet_v2_50 resnet50v2_weights.h5 --output checkpoints/resnet_v2_50.ckpt
  moxserve models convert mobilenet_v2 mobilenet_v2_1.0_224.ckpt --moving-averages --output averaged/mobilenet_v2.ckpt

\b
FILE holds weights of the same application of Keras, alone or in a whole model, with or without the
classifier: .h5, .weights.h5 or .keras. Or it is a checkpoint of the network, of which the network's own
variables are kept.
"""

_name = click.argument("name", metavar="NETWORK")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_num_classes = click.option("--num-classes", type=click.IntRange(1), metavar="N", help="Length of the logits.  "
                            "[default: that of published checkpoints]")  # fmt: skip
_averages = click.option("--moving-averages", is_flag=True, help="Take the moving averages of variables where the "
                         "checkpoint has them.")  # fmt: skip


@click.command("list", epilog=_LIST_EPILOG)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--sort", type=click.Choice(["family", "name", "parameters", "flops"]), default="family",
              show_default=True, help="Order of the rows.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "markdown"]), default="table", show_default=True)
@_json
def list_networks(patterns: Sequence[str], sort: str, form: str, as_json: bool) -> None:
    """List the networks that `mox.get_model_fn` builds."""
    from moxserve.cli.render import echo_json, echo_table

    rows = _picked(patterns)
    if sort != "family":
        rows.sort(key=lambda row: (row["name"],) if sort == "name" else (row[_SORTS[sort]], row["name"]))
    if as_json:
        echo_json({"networks": rows})
        return
    if form == "markdown":
        _echo_markdown(rows)
        return
    echo_table(_HEADINGS, [_cells(row) for row in rows], right=_HEADINGS[1:6])


_SORTS = {"parameters": "trainable_parameters", "flops": "flops"}
_HEADINGS = ["name", "size", "classes", "offset", "parameters", "gflops", "prepared", "paper"]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        str(row["image_size"]),
        str(row["num_classes"]),
        str(row["labels_offset"]),
        f"{row['trainable_parameters']:,}",
        f"{row['flops'] / 1e9:.2f}",
        row["preprocessing"].removesuffix("_preprocessing"),
        _year(row["paper"]),
    ]


def _year(paper: str) -> str:
    """Return the year that a paper's description names."""
    found = re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"arXiv:\S+", "", paper))
    return found[0] if found else ""


def _echo_markdown(rows: Sequence[Mapping[str, Any]]) -> None:
    headings = ["Name", "Size", "Classes", "Offset", "Parameters", "GFLOPs", "Preprocessing", "Paper"]
    click.echo("| " + " | ".join(headings) + " |")
    click.echo("| " + " | ".join("---:" if 0 < i < 6 else "---" for i in range(len(headings))) + " |")
    for row in rows:
        name, *rest, _ = _cells(row)
        click.echo("| " + " | ".join([f"`{name}`", *rest, _cited(row["paper"])]) + " |")


def _cited(paper: str) -> str:
    """Return authors and year, which stand in a paper's first parentheses, with a link where there is one."""
    title, _, cited = paper.partition(" (")
    found = re.match(r"([^;)]+?), arXiv:([\d.]+)", cited)
    return f"[{found[1]}](https://arxiv.org/abs/{found[2]})" if found else cited.partition(")")[0] or title


@cache
def _networks() -> dict[str, dict[str, Any]]:
    """Read what is known of the networks before they are built; importing their package would import TensorFlow."""
    import json
    from pathlib import Path

    import moxserve

    path = Path(moxserve.__file__).parent / "tensorflow" / "nets" / "figures.json"
    return {name: {"name": name, **row} for name, row in json.loads(path.read_text(encoding="utf-8")).items()}


def _network(name: str) -> dict[str, Any]:
    """Return what is known of a network.

    Raises:
        UsageError: there is none of that name; the nearest ones are told.
    """
    from moxserve.errors import UsageError, did_you_mean

    if name not in _networks():
        raise UsageError(
            f"no network {name!r}; {did_you_mean(name.lower(), _networks())}", hint="moxserve models list tells all"
        )
    return _networks()[name]


def _picked(patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the networks that fit a pattern, all without patterns.

    Raises:
        UsageError: a pattern fits none.
    """
    from fnmatch import fnmatchcase

    if not patterns:
        return list(_networks().values())
    wanted: set[str] = set()
    for pattern in patterns:
        exact = pattern in _networks() or re.search(r"[*?\[]", pattern)
        glob = pattern if exact else f"*{pattern}*"
        fitting = {name for name in _networks() if fnmatchcase(name, glob.lower())}
        if not fitting:
            _network(pattern)  # tells what is near
        wanted |= fitting
    return [row for name, row in _networks().items() if name in wanted]


@click.command("show", epilog=_SHOW_EPILOG)
@_name
@click.option("--end-points", is_flag=True, help="List the end points with their shapes.")
@click.option("--layers", is_flag=True, help="List convolutions and dense layers with parameters and operations.")
@click.option("--variables", is_flag=True, help="List the variables with their shapes.")
@click.option("--image-size", type=click.IntRange(1), metavar="N", help="Side of the images.  [default: the network's]")
@_num_classes
@_json
def show_network(
    name: str,
    end_points: bool,
    layers: bool,
    variables: bool,
    image_size: int | None,
    num_classes: int | None,
    as_json: bool,
) -> None:
    """Tell what a network is: size, cost, options, checkpoints that fit."""
    from moxserve.cli.inspect_show import echo_report

    row = _network(name)
    tables = [
        key for key, wanted in (("end_points", end_points), ("layers", layers), ("variables", variables)) if wanted
    ]
    builds = bool(tables or image_size or num_classes)
    echo_report(_built(row, tables, image_size, num_classes) if builds else _described(row), as_json)


def _described(row: Mapping[str, Any], **changes: Any) -> Report:
    """Write the report of a network from what is known of it.

    Args:
        row: of the table.
        **changes: entries of it that were computed for another size or number of classes.
    """
    from moxserve.inspect.report import Report, Table, columns

    row = {**row, **changes}
    size, name = row["image_size"], row["name"]
    averages = row["parameters"] - row["trainable_parameters"]
    (first, first_shape), (last, last_shape) = row["first_variable"], row["last_variable"]
    facts = {
        "paper": row["paper"],
        "parameters": f"{row['trainable_parameters']:,}" + (f", and {averages:,} moving averages" if averages else ""),
        "operations": f"{row['flops'] / 1e9:.2f} GFLOPs an image (a multiply-add is two)",
        "layers": f"{row['layers']} convolutions and dense layers",
        "images": f"{size}x{size}x{row['channels']}, {row['preprocessing']}",
        "classes": f"{row['num_classes']}; labels_offset {row['labels_offset']}",
        "logits": f"variables whose names contain {row['logits_pattern']!r}",
        "variables": str(row["variables"]),
        "first": f"{first} {first_shape}",
        "last": f"{last} {last_shape}",
        **_checkpoints(row),
        "example": f'mox.get_model_fn("{name}", mode, num_classes)(images)',
        "more": "--end-points, --layers and --variables list them with shapes",
    }
    options = Table("options", columns("option default"), list(row["options"].items()))
    return Report(name, "network", facts, [options] if options.rows else [])


def _checkpoints(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the published checkpoints that fit, by who published them."""
    found = {}
    if row["slim_checkpoint"]:
        note = row["slim_checkpoint_note"]
        found["TF-Slim"] = row["slim_checkpoint"] + (f" ({note})" if note else "")
    if row["keras_application"]:
        found["Keras"] = f"keras.applications.{row['keras_application']}, by moxserve models convert"
    return found or {"checkpoints": "none of TF-Slim or Keras"}


def _built(row: Mapping[str, Any], keys: Sequence[str], image_size: int | None, num_classes: int | None) -> Report:
    """Build a network and write its report, with tables."""
    _import_tensorflow()
    from moxserve.inspect.report import Table, columns
    from moxserve.tensorflow.nets.summary import facts, summarize

    size = None if image_size is None else (image_size, image_size)
    summary = summarize(row["name"], size, num_classes)
    changes = {"image_size": summary.image_shape[0], "num_classes": summary.num_classes}
    report = _described({**row, **facts(summary)}, **changes)
    made: dict[str, Table] = {
        "end_points": Table(
            "end_points", columns("name:long shape:shape"), [(e.name, e.shape) for e in summary.end_points]
        ),
        "layers": Table(
            "layers",
            columns("name:long kind kernel:shape shape:shape parameters:count flops:count"),
            [(x.name, x.kind, x.kernel, x.shape, x.parameters, x.flops) for x in summary.layers],
        ),
        "variables": Table(
            "variables",
            columns("name:long shape:shape trained parameters:count"),
            [(v.name, v.shape, "yes" if v.trainable else "no", v.size) for v in summary.variables],
        ),
    }
    report.tables = [made[key] for key in keys] or report.tables
    return report


@click.command("check", epilog=_CHECK_EPILOG)
@_name
@click.argument("checkpoint", type=click.Path())
@click.option(
    "--include", default="", metavar="A,B", help="Regular expressions: only variables with a match in the name."
)
@click.option("--exclude", default="", metavar="A,B", help="Regular expressions: variables to leave out.")
@_num_classes
@_averages
@_json
def check_network(
    name: str,
    checkpoint: str,
    include: str,
    exclude: str,
    num_classes: int | None,
    moving_averages: bool,
    as_json: bool,
) -> None:
    """Tell what of a network a checkpoint gives, and what to do about the rest."""
    from moxserve.errors import VerificationError

    _network(name)
    _import_tensorflow()
    from moxserve.file.standins import by_url
    from moxserve.tensorflow.executor.remote import local_checkpoint
    from moxserve.tensorflow.nets.checkpoints import match

    with local_checkpoint(checkpoint) as here:
        report = match(name, here, num_classes, include=include, exclude=exclude, moving_averages=moving_averages)
        report = replace(report, path=by_url(report.path))
    _echo_match(name, report, as_json)
    if not report.fits:
        count = len(report.missing) + len(report.misfits)
        raise VerificationError(f"{report.path} does not give {count} of the {report.total} variables of {name}")


def _echo_match(name: str, report: CheckpointReport, as_json: bool) -> None:
    from moxserve.cli.render import echo_json

    if as_json:
        echo_json({
            "network": name, "path": report.path, "form": report.form, "fits": report.fits,
            "restored": list(report.restored), "parameters": sum(report.restored.values()), "of": report.parameters,
            "averaged": report.averaged, "left_out": report.excluded, "missing": report.missing,
            "does_not_fit": [{"name": m.name, "found": m.found, "expected": m.expected} for m in report.misfits],
            "not_used": report.unused, "advice": report.advice,
        })  # fmt: skip
        return
    click.secho(f"{report.path} ({report.form}) for {name}", bold=True)
    for heading, text in report.lines():
        click.echo(f"  {heading:<14}{text}")


@click.command("convert", epilog=_CONVERT_EPILOG)
@_name
@click.argument("file", type=click.Path())
@click.option("--output", required=True, metavar="PREFIX", type=click.Path(), help="Checkpoint to write: its path "
              "without .index. The folder is made if missing.")  # fmt: skip
@_averages
@click.option("--force", is_flag=True, help="Replace the checkpoint if it is there.")
@_json
def convert_weights(name: str, file: str, output: str, moving_averages: bool, force: bool, as_json: bool) -> None:
    """Make a checkpoint of weights that others published."""
    from moxserve import file as files
    from moxserve.cli.render import echo_json
    from moxserve.errors import UsageError
    from moxserve.file.standins import by_url, copied_here
    from moxserve.inspect.detect import is_there
    from moxserve.inspect.opened import delivered

    _network(name)
    if files.exists(f"{output}.index") and not force:
        raise UsageError(f"{output}.index exists already", hint="--force replaces it")
    _import_tensorflow()
    from moxserve.tensorflow.executor.located import without_part
    from moxserve.tensorflow.executor.remote import local_checkpoint
    from moxserve.tensorflow.nets.checkpoints import convert

    # What is no file of its own, such as a prefix or a folder, is a checkpoint.
    is_whole = is_there(file) and without_part(file) == file
    with (copied_here if is_whole else local_checkpoint)(file) as here, delivered(output) as target:
        done = convert(name, here, target, moving_averages=moving_averages)
        done = replace(done, checkpoint=by_url(done.checkpoint))
    if as_json:
        echo_json(done)
        return
    _echo_converted(done)


def _echo_converted(done: Converted) -> None:
    from moxserve.cli.render import bytes_text
    from moxserve.tensorflow.executor.matching import listed

    options = "".join(f", {key}={value!r}" for key, value in done.options.items())
    classes = f", num_classes={done.num_classes}" if done.num_classes else ""
    facts = {
        "variables": f"{done.variables}, {done.parameters:,} parameters, {bytes_text(done.size_bytes)}",
        "classes": "none: without the classifier" if done.num_classes is None else str(done.num_classes),
        "left out": listed(done.left_out) if done.left_out else "",
        "not used": listed(done.unused) if done.unused else "",
        "build with": f'mox.get_model_fn("{done.network}", run_mode{classes}{options})',
    }
    click.echo(f"wrote {done.checkpoint}, a checkpoint of {done.network}")
    for key, value in facts.items():
        if value:
            click.echo(f"  {key:<12}{value}")
    for note in done.notes:
        click.echo(f"note: {note}", err=True)


def _import_tensorflow() -> None:
    """Import TensorFlow without what it has to say on the way."""
    from moxserve.cli.quiet import import_tensorflow

    import_tensorflow()
