"""`moxserve launch`: real processes, killed in every way. The jobs are stand-ins that train nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import UsageError
from moxserve.launch.output import Stream
from moxserve.launch.plan import JobOptions, make_plan

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Each process leaves its pid and what it was told in a file for each of its starts, waits for the file `go`, and saves
# when it is told to end.
SCRIPT = """
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
task = json.loads(os.environ.get("TF_CONFIG", '{"task": {"type": "worker", "index": 0}}'))["task"]
name = f"{task['type']}-{task['index']}"
start = len(list(folder.glob(f"{name}.start-*")))
told = []
signal.signal(signal.SIGTERM, signal.SIG_IGN if "--stubborn" in sys.argv else lambda *_: told.append(time.monotonic()))
child = subprocess.Popen(["sleep", "300"]).pid if "--child" in sys.argv else 0
facts = {
    "pid": os.getpid(), "argv": sys.argv[1:], "child": child,
    "env": {k: os.environ.get(k) for k in ("MOXSERVE_FLAGS", "TF_CONFIG", "CUDA_VISIBLE_DEVICES")},
}
temporary = folder / f"{name}.tmp"
temporary.write_text(json.dumps(facts))
temporary.rename(folder / f"{name}.start-{start}")
print("hello from", name)
print("trouble in", name, file=sys.stderr)
while not (folder / "go").exists() and not told:
    time.sleep(0.02)
if told:
    (folder / f"{name}.saved").write_text(str(told[0]))
    sys.exit(143)
print("last words", end="")
sys.exit(int(os.environ.get("STATUS_" + name.replace("-", "_"), "0")))
"""


class Job:
    """`moxserve launch` in a process, and what its processes leave in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT, encoding="utf-8")
        self.output = folder / "output.txt"
        self.environment = {**os.environ, "FOLDER": str(folder)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **environment: str) -> None:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moxserve", "launch", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                start_new_session=True,
            )

    def facts(self, name: str, start: int = 0) -> dict[str, Any]:
        path = self.folder / f"{name}.start-{start}"
        self.until(path.exists)
        facts: dict[str, Any] = json.loads(path.read_text())
        return facts

    def until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def go(self) -> None:
        (self.folder / "go").touch()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(120)

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def pids(self) -> list[int]:
        known = [json.loads(path.read_text()) for path in self.folder.glob("*.start-*")]
        return [pid for facts in known for pid in (facts["pid"], facts["child"]) if pid]

    def nobody_lives(self) -> None:
        """All are gone, or are about to: who was killed still needs a moment of the processor's time."""
        self.until(lambda: not any(map(is_alive, self.pids())), 60)  # their children would sleep longer


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    if job.process is not None:
        job.process.kill()
        job.process.wait()
    for pid in filter(is_alive, job.pids()):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_every_process_knows_its_place_and_says_who_it_is(job: Job, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    job.start(
        *("--workers", "2", "--ps", "1", "--evaluator", "--async", "--gpus-per-worker", "2", "--log-dir", str(logs)),
        *(str(job.script), "--data_url=x", "--", "y z"),
        CUDA_VISIBLE_DEVICES="4,5,6,7,8",
    )
    told = {name: job.facts(name) for name in ("ps-0", "worker-0", "worker-1", "evaluator-0")}
    job.go()
    assert job.end() == 0
    cluster = json.loads(told["ps-0"]["env"]["TF_CONFIG"])["cluster"]
    ps, workers = cluster["ps"], cluster["worker"]
    assert len({*ps, *workers}) == 3
    assert all(address.startswith("127.0.0.1:") for address in (*ps, *workers))
    for name, facts in told.items():
        kind, _, index = name.partition("-")
        flags = [
            f"--job_name={kind}",
            f"--task_index={index}",
            f"--ps_hosts={ps[0]}",
            f"--worker_hosts={workers[0]},{workers[1]}",
        ]
        flags += ["--sync_replicas=false"] + (["--num_gpus=2"] if kind == "worker" else [])
        assert facts["argv"] == [*flags, "--data_url=x", "--", "y z"]
        assert facts["env"]["MOXSERVE_FLAGS"] == " ".join(flags)
        said = f"=== {name.replace('-', ' ')} started"
        log = (logs / f"{name.replace('evaluator-0', 'evaluator')}.log").read_text()
        assert log.startswith(said.replace("evaluator 0", "evaluator"))
        assert sorted(log.splitlines()[1:]) == ["hello from " + name, "last words", "trouble in " + name]
    assert [told[name]["env"]["CUDA_VISIBLE_DEVICES"] for name in told] == ["-1", "4,5", "6,7", "4,5,6,7,8"]
    assert "\x1b" not in job.text
    for line in ("[worker 1]  hello from worker-1", "[ps 0]      trouble in ps-0", "[evaluator] last words"):
        assert line in job.text.splitlines()
    assert f"[launch] worker 1: process {told['worker-1']['pid']} at {workers[1]}" in job.text


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_alone(job: Job) -> None:
    job.start("--workers", "2", "--ps", "1", str(job.script))
    names = ("worker-1", "worker-0", "ps-0")
    first = {name: job.facts(name) for name in names}
    for name in names:
        os.kill(first[name]["pid"], signal.SIGKILL)
        again = job.facts(name, 1)
        assert (again["argv"], again["env"]) == (first[name]["argv"], first[name]["env"])
    job.go()
    assert job.end() == 0
    assert len(job.pids()) == 6
    assert "worker 1 was ended by SIGKILL; it is started again in 0.5 s (1 of 3)" in job.text


@pytest.mark.slow
@pytest.mark.parametrize("late_s", [0.1, 1.5])
def test_a_parameter_server_that_ended_with_a_stopped_worker_comes_back_for_it(job: Job, late_s: float) -> None:
    """The worker left when it was told to, and said so; the server ends a little later, with status 0."""
    job.script.write_text(
        "import json, os, pathlib, sys, time\n"
        "folder = pathlib.Path(os.environ['FOLDER'])\n"
        "job = json.loads(os.environ['TF_CONFIG'])['task']['type']\n"
        "again = (folder / job).exists()\n"
        "(folder / (job + '-again' if again else job)).touch()\n"
        "if job == 'worker' and not again:\n"
        "    sys.exit(143)\n"
        "until = time.monotonic() + 60\n"
        "while not (folder / ('worker' if job == 'ps' else 'ps-again')).exists() and time.monotonic() < until:\n"
        "    time.sleep(0.02)\n"
        "time.sleep(float(os.environ['LATE']) if job == 'ps' else 0)\n"
        "sys.exit(job == 'worker' and not (folder / 'ps-again').exists())\n",
        encoding="utf-8",
    )
    job.start("--ps", "1", "--restarts", "1", str(job.script), LATE=str(late_s))
    assert job.end() == 0, job.text
    assert "ps 0 is started again, for workers that were" in job.text


@pytest.mark.slow
def test_an_evaluator_that_ends_before_the_parameter_server_is_not_waited_for(job: Job) -> None:
    """What the server leaves behind has its outputs, so that only the ends of the processes tell the launcher."""
    job.script.write_text(
        "import json, os, pathlib, subprocess, time\n"
        "folder = pathlib.Path(os.environ['FOLDER'])\n"
        "job = json.loads(os.environ['TF_CONFIG'])['task']['type']\n"
        "before = {'worker': 'worker', 'evaluator': 'worker', 'ps': 'evaluator'}[job]\n"
        "while job != 'worker' and not (folder / before).exists():\n"
        "    time.sleep(0.02)\n"
        "time.sleep(0 if job == 'worker' else 0.5)\n"
        "if job == 'ps':\n"
        "    left = subprocess.Popen(['sleep', '300'], start_new_session=True).pid\n"
        "    (folder / 'left.start-0').write_text(json.dumps({'pid': left, 'child': 0}))\n"
        "(folder / job).touch()\n",
        encoding="utf-8",
    )
    job.start("--ps", "1", "--evaluator", str(job.script))
    assert job.end() == 0, job.text
    assert "evaluator is done" in job.text


@pytest.mark.slow
def test_a_process_is_told_to_end_once(tmp_path: Path) -> None:
    """A second SIGTERM would end a training that saves its state: the lifeline of one that was told may end."""
    script = (
        "import signal, time\n"
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.append(1))\n"
        "print('ready', flush=True)\n"
        "while not told:\n"
        "    time.sleep(0.02)\n"
        "print('told', flush=True)\n"
        "time.sleep(0.5)\n"
        "print(len(told), flush=True)\n"
    )
    command = [sys.executable, "-m", "moxserve.launch.member", "--", sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"%d\n" % signal.SIGTERM)
        assert process.stdout.readline() == b"told\n"
        process.stdin.close()
        assert process.stdout.read() == b"1\n"


@pytest.mark.slow
def test_workers_without_a_parameter_server_are_started_again_together(job: Job) -> None:
    job.start("--workers", "2", "--grace", "4", str(job.script))  # which a busy machine needs for worker 0 to save
    first = [job.facts(name)["pid"] for name in ("worker-0", "worker-1")]
    os.kill(first[1], signal.SIGKILL)
    assert job.facts("worker-0", 1)["pid"] != first[0]
    job.facts("worker-1", 1)
    assert (job.folder / "worker-0.saved").exists()
    job.go()
    assert job.end() == 0
    assert "worker 1 was ended by SIGKILL; all workers are started again in 0.5 s (1 of 3)" in job.text


@pytest.mark.slow
@pytest.mark.parametrize(("status", "restarts", "starts"), [("7", "1", 2), ("2", "3", 1)])
def test_a_job_that_cannot_be_kept_running_ends_with_the_status_of_who_failed(
    job: Job, status: str, restarts: str, starts: int
) -> None:
    job.go()
    job.start("--workers", "2", "--ps", "1", "--restarts", restarts, str(job.script), STATUS_worker_0=status)
    assert job.end() == int(status)
    assert len(list(job.folder.glob("worker-0.start-*"))) == starts
    why = {"7": "no restart is left", "2": "its command line or configuration is wrong"}[status]
    assert f"worker 0 ended with status {status}; {why}: ending all processes" in job.text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_workers_before_the_parameter_servers(job: Job, number: int) -> None:
    job.start("--workers", "2", "--ps", "1", "--evaluator", str(job.script), "--child")
    names = ("worker-0", "worker-1", "evaluator-0", "ps-0")
    for name in names:
        job.facts(name)
    job.send(number)
    assert job.end() == 128 + number
    saved = [float((job.folder / f"{name}.saved").read_text()) for name in names]
    assert max(saved[:3]) < saved[3]
    job.nobody_lives()  # nor what they started


@pytest.mark.slow
def test_who_does_not_end_is_killed_after_the_grace_time_or_at_the_second_signal(job: Job) -> None:
    job.start("--grace", "0.2", str(job.script), "--stubborn", "--child")
    job.facts("worker-0")
    job.send(signal.SIGTERM)
    assert job.end() == 143
    job.nobody_lives()
    job.start("--grace", "60", str(job.script), "--stubborn")
    job.facts("worker-0", 1)
    job.send(signal.SIGINT)
    job.until(lambda: "SIGINT: ending all processes" in job.text)
    job.send(signal.SIGINT)
    assert job.end() == 130
    job.nobody_lives()


@pytest.mark.slow
def test_nothing_outlives_a_launcher_that_is_killed(job: Job) -> None:
    job.start("--workers", "2", "--ps", "1", str(job.script), "--child")
    for name in ("worker-0", "worker-1", "ps-0"):
        job.facts(name)
    job.send(signal.SIGKILL)
    job.nobody_lives()
    assert (job.folder / "worker-0.saved").exists()  # they were told to end, and had the time to


@pytest.mark.slow
def test_nothing_outlives_the_process_around_it(job: Job) -> None:
    job.start("--restarts", "0", str(job.script), "--child", "--stubborn")
    pid = job.facts("worker-0")["pid"]
    member = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(member, signal.SIGKILL)
    assert job.end() == 137
    job.nobody_lives()


@pytest.mark.slow
def test_a_script_with_a_strict_parser_gets_its_flags_by_the_environment(job: Job) -> None:
    job.script.write_text(
        "import argparse, os\nargparse.ArgumentParser().parse_args()\nprint(os.environ['MOXSERVE_FLAGS'])\n"
    )
    job.start("--workers", "2", str(job.script))
    assert job.end() == 2
    assert "unrecognized arguments: --job_name=worker" in job.text
    assert "--flags=environment" in job.text
    job.start("--workers", "2", "--flags", "environment", str(job.script))
    assert job.end() == 0
    assert "[worker 1] --job_name=worker --task_index=1 --worker_hosts=127.0.0.1:" in job.text


FAKE_SSH = """#!/bin/sh
echo "ssh to $3" >> "$FOLDER/ssh.txt"
cd /
exec env -u TF_CONFIG sh -c "$4"
"""


@pytest.mark.slow
def test_hosts_are_reached_through_ssh(job: Job) -> None:
    fake = job.folder / "ssh"
    fake.write_text(FAKE_SSH)
    fake.chmod(0o755)
    job.start(
        *("--hosts", "a,me@b", "--workers", "2", "--ps", "1", "--run", "--ssh", f"{fake} -p 22"),
        *("--workdir", str(job.folder), "script.py", "it's"),
    )
    facts = {name: job.facts(name) for name in ("ps-0", "worker-0", "worker-1")}
    addresses = "--ps_hosts=a:2222", "--worker_hosts=a:2223,b:2222"
    assert facts["worker-1"]["argv"] == ["--job_name=worker", "--task_index=1", *addresses, "it's"]
    assert sorted((job.folder / "ssh.txt").read_text().splitlines()) == ["ssh to a", "ssh to a", "ssh to me@b"]
    os.kill(facts["worker-1"]["pid"], signal.SIGKILL)
    job.facts("worker-1", 1)
    assert "[launch] worker 1: on me@b at b:2222" in job.text
    job.send(signal.SIGKILL)  # the connections break
    job.nobody_lives()


@pytest.mark.slow
def test_commands_for_hosts(run_moxserve: Run, tmp_path: Path) -> None:
    common = ("launch", "--hosts", "a,b", "--workers", "2", "--ps", "1", "--workdir", "/job dir", "--python", "python3")
    done = run_moxserve(*common, "--gpus-per-worker", "4", "train.py", "--data_url=d", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    cluster = "--ps_hosts=a:2222 --worker_hosts=a:2223,b:2222"
    assert done.stdout.splitlines() == [
        "# on a",
        "cd '/job dir'",
        "# ps 0 at a:2222",
        f"CUDA_VISIBLE_DEVICES=-1 python3 train.py --job_name=ps --task_index=0 {cluster} --data_url=d",
        "# worker 0 at a:2223",
        f"python3 train.py --job_name=worker --task_index=0 {cluster} --num_gpus=4 --data_url=d",
        "# on b",
        "cd '/job dir'",
        "# worker 1 at b:2222",
        f"python3 train.py --job_name=worker --task_index=1 {cluster} --num_gpus=4 --data_url=d",
    ]
    done = run_moxserve(*common, "train.yaml", "--set", "run.seed=1", cwd=tmp_path)
    flags = f"--job_name=worker --task_index=1 {cluster}"
    assert done.stdout.splitlines()[-1] == (
        f"MOXSERVE_FLAGS='{flags}' python3 -m moxserve pipeline run train.yaml --set run.seed=1"
    )


@pytest.mark.slow
def test_help_and_dry_runs_import_no_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    for arguments in (["--help"], ["--workers", "2", "--dry-run", "train.py"]):
        code = (
            "import sys\nsys.modules['tensorflow'] = sys.modules['numpy'] = None\n"
            f"from moxserve.cli.main import main\nmain(['launch', *{arguments!r}])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("# worker 0 at 127.0.0.1:")
    assert "train.py --job_name=worker --task_index=0 --worker_hosts=127.0.0.1:" in done.stdout


def options(**given: Any) -> JobOptions:
    return JobOptions(**{"target": __file__, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "nothing.yaml"}, "no such pipeline: 'nothing.yaml'"),
        ({"target": "nothing.py"}, "no such script: 'nothing.py'"),
        ({"target": "no-such-program"}, "'no-such-program' is no pipeline"),
        ({"workers": 2, "synchronous": False}, "--async: workers that step apart need a parameter server"),
        (
            {"workers": 2, "ps": 1, "synchronous": False, "variable_update": "replicated"},
            "--async: workers that step apart",
        ),
        ({"workers": 2, "variable_update": "parameter_server"}, "--variable-update=parameter_server keeps"),
        ({"variable_update": "distributed_replicated"}, "on parameter servers"),
        ({"workers": 2, "gpus_per_worker": 2}, "for 2 workers needs 4 GPUs; here are 3"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UsageError, match=message):
        make_plan(options(**given))


@pytest.mark.parametrize("update", ["replicated", "all_reduce"])
def test_workers_with_variables_of_their_own_go_on_together(update: str) -> None:
    assert make_plan(options(workers=2, ps=1, variable_update=update)).together


def test_a_single_process_is_told_nothing() -> None:
    (task,) = make_plan(options(arguments=("--x",))).tasks
    assert task.command == (sys.executable, __file__, "--x")
    assert dict(task.environment) == {"PYTHONUNBUFFERED": "1"}


def test_flags_of_the_callers_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXSERVE_FLAGS", "--log_dir=runs/1")
    task = make_plan(options(synchronous=False)).tasks[0]
    assert task.environment["MOXSERVE_FLAGS"] == "--log_dir=runs/1 --sync_replicas=false"


@given(st.integers(1, 8), st.integers(0, 4), st.lists(st.sampled_from("abcd"), unique=True), st.booleans())
def test_every_process_has_an_address_of_its_own(workers: int, ps: int, hosts: list[str], evaluator: bool) -> None:
    plan = make_plan(options(workers=workers, ps=ps, hosts=tuple(hosts), evaluator=evaluator))
    assert [len(plan.of(job)) for job in ("worker", "ps", "evaluator")] == [workers, ps, int(evaluator)]
    assert plan.together == (workers > 1 and not ps)
    members = [task for task in plan.tasks if task.job != "evaluator"]
    addresses = [task.address for task in members]
    if workers + ps == 1:
        return
    assert len(set(addresses)) == len(members)
    for task in members:
        assert task.address.startswith(f"{task.host or '127.0.0.1'}:")
        if "TF_CONFIG" in task.environment:
            cluster = json.loads(task.environment["TF_CONFIG"])["cluster"]
            assert cluster[task.job][task.index] == task.address
    if hosts and workers >= len(hosts):
        assert {task.host for task in plan.of("worker")} == set(hosts)


class Lines:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def line(self, name: str, line: bytes, err: bool) -> None:
        self.lines.append(line)


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\rx"]), max_size=30), st.data())
def test_lines_do_not_depend_on_how_they_are_read(words: list[bytes], data: st.DataObject) -> None:
    text = b"".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    whole, parts = Lines(), Lines()
    stream = Stream(whole, "worker 0", err=False)  # type: ignore[arg-type]
    stream.feed(text)
    stream.end()
    stream = Stream(parts, "worker 0", err=False)  # type: ignore[arg-type]
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        stream.feed(text[start:end])
    stream.end()
    assert parts.lines == whole.lines
    assert b"".join(whole.lines) == text.replace(b"\r", b"").replace(b"\n", b"")
