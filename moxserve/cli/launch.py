"""`moxserve launch`: train with several processes, here or on other machines. Imports no TensorFlow."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from moxserve.cli.paths import LocalPath
from moxserve.launch.plan import UPDATES

__all__ = ["launch"]

_EPILOG = """\b
Examples:
  moxserve launch --workers 2 --ps 1 pipelines/digits.yaml --set run.max_number_of_steps=200
  moxserve launch --workers 2 train.py --data_url=data --train_url=runs/1
  moxserve launch --workers 2 --ps 1 --async --evaluator train.py
  moxserve launch --hosts a,b --workers 4 --ps 2 train.py

\b
A script gets --job_name, --task_index, --ps_hosts and --worker_hosts before its own arguments; a pipeline
and any other program find them in MOXSERVE_FLAGS; all find TF_CONFIG. The exit status is 0 when all workers
are done, that of the process that could not be kept running, or 130 and 143 after Ctrl-C and SIGTERM."""


def _hosts(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(host.strip() for host in (value or "").split(",") if host.strip())


def _flag_help(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    from moxserve.cli.quiet import import_tensorflow

    import_tensorflow()
    from moxserve.tensorflow.utils.hyper_param_flags import mox_flags

    click.echo(mox_flags.get_help())
    context.exit(0)


@click.command(context_settings={"allow_interspersed_args": False, "max_content_width": 110}, epilog=_EPILOG)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Processes that train.  [default: 1, or one a host]"
)
@click.option(
    "--ps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Parameter servers, which hold the variables. Without any, several workers use all-reduce.",
)
@click.option("--evaluator", is_flag=True, help="One more process, which evaluates each new checkpoint.")
@click.option(
    "--sync/--async",
    "synchronous",
    default=None,
    help="Whether the workers make each step together.  [default: as the script says, else --sync]",
)
@click.option("--variable-update", type=click.Choice(UPDATES), help="Where variables live and how gradients meet.")
@click.option(
    "--gpus-per-worker",
    type=click.IntRange(min=1),
    metavar="N",
    help="Devices of each worker; the GPUs of a machine are divided. Without GPUs: logical devices.",
)
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="How often a process that died is started again; workers without --ps all together.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a process may take to save its state and end.",
)
@click.option(
    "--log-dir",
    type=LocalPath("checkpoints and events go to a store by the log_dir of the training", file_okay=False),
    metavar="DIR",
    help="Add what each process prints to DIR/worker-0.log, ..., too.",
)
@click.option(
    "--hosts",
    callback=_hosts,
    metavar="HOST,...",
    help="Machines to spread the processes over; prints the commands of each, unless --run is given.",
)
@click.option("--run", "run_there", is_flag=True, help="Run the commands on the --hosts through ssh.")
@click.option(
    "--ssh", default="ssh -o BatchMode=yes", show_default=True, metavar="COMMAND", help="How --run reaches a host."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=2222,
    show_default=True,
    metavar="N",
    help="First port of each of the --hosts. On this machine, free ports are taken.",
)
@click.option("--workdir", metavar="DIR", help="Folder of the target on the --hosts.  [default: the current one]")
@click.option("--python", default=sys.executable, metavar="PATH", help="Interpreter.  [default: this one]")
@click.option(
    "--flags",
    type=click.Choice(["arguments", "environment"]),
    default="arguments",
    show_default=True,
    help="How a script gets its flags: one whose parser refuses unknown arguments needs the environment.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands, and start nothing.")
@click.option(
    "--help-flags",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_flag_help,
    help="Show the run-time flags that every script understands.",
)
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(target: str, arguments: tuple[str, ...], **values: Any) -> int:
    """Train with several processes: TARGET is a pipeline (.yaml), a script (.py) or a program.

    Starts the processes, shows their output line by line, starts again what dies, and ends all of them in order:
    on Ctrl-C and SIGTERM the workers save their state first. None outlives this command, however it ends.
    """
    from moxserve.errors import UsageError
    from moxserve.launch.hosts import listing
    from moxserve.launch.plan import JobOptions, make_plan

    hosts = values["hosts"]
    if values["run_there"] and not hosts:
        raise UsageError("--run runs commands on other machines: which?", hint="--hosts a,b")
    options = JobOptions(
        target=target,
        arguments=arguments,
        workers=values["workers"] or len(hosts) or 1,
        ps=values["ps"],
        evaluator=values["evaluator"],
        synchronous=values["synchronous"],
        variable_update=values["variable_update"],
        gpus_per_worker=values["gpus_per_worker"],
        hosts=hosts,
        port=values["port"],
        python=values["python"],
        workdir=values["workdir"] or os.getcwd(),
        by_environment=values["flags"] == "environment",
    )
    plan = make_plan(options)
    if values["dry_run"] or (hosts and not values["run_there"]):
        for line in listing(plan, options):
            click.echo(line)
        return 0
    return _run(plan, options, values)


def _run(plan: Any, options: Any, values: dict[str, Any]) -> int:
    import shlex
    from functools import partial

    from moxserve.launch.hosts import member_command
    from moxserve.launch.output import Console
    from moxserve.launch.supervisor import Policy, Supervisor

    console = Console([task.name for task in plan.tasks], values["log_dir"])
    command = partial(member_command, options, values["grace"], shlex.split(values["ssh"]))
    try:
        status = Supervisor(plan, Policy(values["restarts"], values["grace"]), command, console).run()
    finally:
        console.close()
    if status == 2 and options.target.endswith(".py") and not options.by_environment:
        console.say("a script whose parser refuses arguments that it does not know needs --flags=environment")
    return status
