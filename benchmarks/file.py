"""`mox.file` against boto3 with s3transfer, s3fs and obstore, on one store, in one run.

    python benchmarks/file.py --setup            # s3fs and obstore, each in an environment of its own
    python benchmarks/file.py [--rounds 3] [--endpoint http://127.0.0.1:6280] [--json]

small up, down    a directory of 1,000 files of 100 KB, 16 copies at once
large up, down    one file of 512 MB
listing           10,000 keys, 1,000 a page

The store is moto's server in a process of its own, unless --endpoint (with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)
names another one. CPU seconds are those of the program and its children, without the import of its libraries; memory is
the peak of the program's resident set, with Python and libraries (`at rest` is what it has before it begins). Programs
take turns; the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moxserve.ports import free_port

PEERS = Path(__file__).resolve().parent.parent / ".cache" / "peers"
CASES = ("small up", "small down", "large up", "large down", "listing")

PROGRAM = """
import json, os, resource, sys, time
CASE, BUCKET, FOLDER, ENDPOINT, FILES = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])

def rss_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

def used():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

def measure(work):
    open("/proc/self/clear_refs", "w").write("5")  # the peak of before, which the starting process left, is forgotten
    rest, wall, cpu = rss_mb(), time.perf_counter(), used()
    work()
    wall, cpu = time.perf_counter() - wall, used() - cpu
    peak = next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_mb": peak, "rest_mb": rest}), flush=True)
"""
OURS = """
from moxserve import file
file.exists(f"s3://{BUCKET}/none")
def small_up(): file.copy_parallel(f"{FOLDER}/small", f"s3://{BUCKET}/{PREFIX}", threads=16)
def small_down(): file.copy_parallel(f"s3://{BUCKET}/given", f"{FOLDER}/{PREFIX}", threads=16)
def large_up(): file.copy(f"{FOLDER}/large", f"s3://{BUCKET}/{PREFIX}")
def large_down(): file.copy(f"s3://{BUCKET}/large", f"{FOLDER}/{PREFIX}")
def listing():
    names = file.list_directory(f"s3://{BUCKET}/many", recursive=True, skip_dir=True)
    if len(names) != 10000: raise SystemExit("wrong")
"""
S3TRANSFER = """
import boto3
from boto3.s3.transfer import TransferConfig
from concurrent.futures import wait
from s3transfer.manager import TransferManager, TransferConfig as Settings
client = boto3.client("s3", endpoint_url=ENDPOINT)
def small(call, names):
    with TransferManager(client, Settings(max_request_concurrency=16)) as manager:
        for future in [call(manager, name) for name in names]: future.result()
def small_up():
    small(lambda m, n: m.upload(f"{FOLDER}/small/{n}", BUCKET, f"{PREFIX}/{n}"), os.listdir(f"{FOLDER}/small"))
def small_down():
    os.makedirs(f"{FOLDER}/{PREFIX}")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="given/")
    names = [o["Key"][6:] for page in pages for o in page["Contents"]]
    small(lambda m, n: m.download(BUCKET, f"given/{n}", f"{FOLDER}/{PREFIX}/{n}"), names)
def large_up(): client.upload_file(f"{FOLDER}/large", BUCKET, PREFIX)
def large_down(): client.download_file(BUCKET, "large", f"{FOLDER}/{PREFIX}")
def listing():
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="many/")
    if sum(len(page["Contents"]) for page in pages) != 10000: raise SystemExit("wrong")
"""
S3FS = """
import s3fs
fs = s3fs.S3FileSystem(endpoint_url=ENDPOINT)
fs.exists(f"{BUCKET}/none")
def small_up(): fs.put(f"{FOLDER}/small/", f"{BUCKET}/{PREFIX}/", recursive=True, batch_size=16)
def small_down(): fs.get(f"{BUCKET}/given/", f"{FOLDER}/{PREFIX}/", recursive=True, batch_size=16)
def large_up(): fs.put_file(f"{FOLDER}/large", f"{BUCKET}/{PREFIX}")
def large_down(): fs.get_file(f"{BUCKET}/large", f"{FOLDER}/{PREFIX}")
def listing():
    if len(fs.find(f"{BUCKET}/many")) != 10000: raise SystemExit("wrong")
"""
OBSTORE = """
from concurrent.futures import ThreadPoolExecutor
import obstore
from obstore.store import S3Store
store = S3Store(BUCKET, endpoint=ENDPOINT, region="us-east-1", client_options={"allow_http": True},
                virtual_hosted_style_request=False)
def up(name, key):
    with open(name, "rb") as file: obstore.put(store, key, file)
def down(key, name):
    with open(name, "wb") as file:
        for chunk in obstore.get(store, key).stream(min_chunk_size=8 << 20): file.write(chunk)
def small_up():
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: up(f"{FOLDER}/small/{n}", f"{PREFIX}/{n}"), os.listdir(f"{FOLDER}/small")))
def small_down():
    os.makedirs(f"{FOLDER}/{PREFIX}")
    names = [o["path"] for page in obstore.list(store, "given") for o in page]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: down(n, f"{FOLDER}/{PREFIX}/{n[6:]}"), names))
def large_up(): up(f"{FOLDER}/large", PREFIX)
def large_down(): down("large", f"{FOLDER}/{PREFIX}")
def listing():
    if sum(len(page) for page in obstore.list(store, "many")) != 10000: raise SystemExit("wrong")
"""
END = """
measure(globals()[CASE.replace(" ", "_")])
"""
PACKAGES = {"s3fs": ("s3fs",), "obstore": ("obstore",)}


def setup() -> None:
    """Install the peers that are not here already."""
    for name, packages in PACKAGES.items():
        folder = PEERS / f"file-{name}"
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], check=True)


@contextmanager
def served(endpoint: str | None) -> Iterator[str]:
    """Give the address of a store, a server of moto's unless there is one already."""
    if endpoint:
        yield endpoint
        return
    port = free_port()
    code = f"from moto.server import main; main(['-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(endpoint, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def fill(client: object, bucket: str, folder: Path, options: argparse.Namespace) -> None:
    """Make the local files, and the objects that are read and listed."""
    from concurrent.futures import ThreadPoolExecutor

    small = folder / "small"
    small.mkdir()
    for number in range(options.files):
        (small / f"{number:05d}").write_bytes(os.urandom(100_000))
    with open(folder / "large", "wb") as file:
        for _ in range(options.large_mb):
            file.write(os.urandom(1 << 20))
    put = lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data)  # type: ignore[attr-defined]  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: put(f"given/{path.name}", path.read_bytes()), sorted(small.iterdir())))
        list(pool.map(lambda number: put(f"many/{number % 50}/{number}", b""), range(10_000)))
    client.upload_file(str(folder / "large"), bucket, "large")  # type: ignore[attr-defined]


def run(python: str, code: str, arguments: list[str], environment: dict[str, str]) -> dict[str, float] | None:
    """Run one program; None if it failed."""
    done = subprocess.run(
        [python, "-c", PROGRAM + "PREFIX = sys.argv[6]\n" + code + END, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(done.stderr[-500:], file=sys.stderr)
    return json.loads(lines[-1]) if lines else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="install s3fs and obstore into .cache/peers, and end")
    parser.add_argument("--rounds", type=int, default=3, help="how often each program runs")
    parser.add_argument("--endpoint", help="a store that runs already")
    parser.add_argument("--files", type=int, default=1000, help="small files")
    parser.add_argument("--large-mb", type=int, default=512, help="size of the large file")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated, of: " + ", ".join(CASES))
    parser.add_argument("--json", action="store_true", help="print all numbers instead of a table")
    options = parser.parse_args()
    if options.setup:
        setup()
        return
    sides = {"moxserve": (sys.executable, OURS), "s3transfer": (sys.executable, S3TRANSFER)}
    for name, code in (("s3fs", S3FS), ("obstore", OBSTORE)):
        python = PEERS / f"file-{name}" / "bin" / "python"
        if python.exists():
            sides[name] = (str(python), code)
    cases = [case for case in CASES if case in options.cases.split(",")]
    results: dict[str, dict[str, list[dict[str, float]]]] = {case: {side: [] for side in sides} for case in cases}
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
    with served(options.endpoint) as endpoint, tempfile.TemporaryDirectory() as scratch:
        environment = {**keys, **os.environ, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        environment.setdefault("AWS_DEFAULT_REGION", environment["AWS_REGION"])
        os.environ.update(environment)
        import boto3

        client, bucket = boto3.client("s3", endpoint_url=endpoint), f"bench-{uuid.uuid4().hex[:8]}"
        client.create_bucket(Bucket=bucket)
        fill(client, bucket, Path(scratch), options)
        for _ in range(options.rounds):
            for case in cases:
                for side, (python, code) in sides.items():
                    prefix = f"made-{uuid.uuid4().hex[:8]}"
                    own = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                    own = own if python == sys.executable else environment
                    arguments = [case, bucket, scratch, endpoint, str(options.files), prefix]
                    if result := run(python, code, arguments, own):
                        results[case][side].append(result)
                    made = Path(scratch) / prefix
                    shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    if options.json:
        print(json.dumps(results))
        return
    print_table(results)


def print_table(results: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Print medians, and how many times the CPU time and the time of ours each peer needs."""
    print(f"{'':12}{'':14}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}{'at rest':>9}{'CPU x':>8}{'wall x':>8}")
    for case, sides in results.items():
        ours = sides["moxserve"]
        for side, runs in sides.items():
            if not runs:
                print(f"{case:12}{side:14}{'failed':>8}")
                continue
            middle = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
            ratios = ""
            if ours:
                cpu, wall = (
                    statistics.median(r[k] for r in runs) / statistics.median(r[k] for r in ours)
                    for k in ("cpu_s", "wall_s")
                )
                ratios = f"{cpu:8.2f}{wall:8.2f}"
            print(
                f"{case:12}{side:14}{middle['cpu_s']:8.2f}{middle['wall_s']:8.2f}{middle['peak_mb']:9.0f}"
                f"{middle['rest_mb']:9.0f}{ratios}"
            )
            case = ""


if __name__ == "__main__":
    main()
