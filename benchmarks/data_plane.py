"""Page events to sessions: our kernel, pyarrow, polars, and our kernel through Ray Data, in one run.

    python benchmarks/data_plane.py                      # 20 million events
    python benchmarks/data_plane.py --events 2000000     # a quick look

Every variant reads the same 16 time-ordered zstd Parquet files and writes zstd Parquet sessions: user, entry, exit,
landing page, list of pages (equal neighbours merged), list of dwell seconds. Ours write the whole canonical row
(session id and the nullable columns too), split into user buckets; the others write one table sorted by user and
time, which is less work. Each runs in a process of its own with one thread (Ray: two workers); the events are made
once, outside every measurement. All variants must give the same sessions: their number and a checksum over users,
times, pages and dwell are compared.

Columns: CPU seconds (user and system, all processes of the variant) from "imports done" to "sessions on disk", their
ratio to the kernel, wall seconds, and the peak of private memory summed over the variant's processes. What it costs
to start Ray is shown below the table.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from data_plane_peers import GAP_MS, run_polars, run_pyarrow
from page_events import checksum, make_events

from plpm_ray.core.storage import read_parquet, write_parquet
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.data.sessionise import bucketise, sessionise
from plpm_ray.data.shards import read_shards, write_shards

TICKS = os.sysconf("SC_CLK_TCK")
CACHE = Path(tempfile.gettempdir()) / "plpm-data-plane"


# ---- the variants


def run_kernel(files: list[Path], out: Path, n_buckets: int) -> None:
    """The kernel alone: buckets in memory, no staging, no Ray."""
    parts: list[list[pa.Table]] = [[] for _ in range(n_buckets)]
    for file in files:
        for bucket, part in enumerate(bucketise(read_parquet(file), n_buckets)):
            parts[bucket].append(part)
    for bucket in range(n_buckets):
        events = pa.concat_tables(parts[bucket])
        write_parquet(out / f"bucket={bucket:03d}.parquet", sessionise(events, gap_ms=GAP_MS))


def split_file(item: tuple[int, Path], staging: Path, n_buckets: int) -> list[int]:
    index, file = item
    return write_shards(bucketise(read_parquet(file), n_buckets), staging, index)


def finish_bucket(bucket: int, staging: Path, n_files: int, out: Path) -> int:
    sessions = sessionise(read_shards(staging, bucket, n_files), gap_ms=GAP_MS)
    write_parquet(out / f"bucket={bucket:03d}.parquet", sessions)
    return sessions.num_rows


def run_two_phases(files: list[Path], out: Path, n_buckets: int, backend: str) -> None:
    """As the product does it: one task per file, then one per bucket, staging on disk."""
    staging = out / "staging"
    split = partial(split_file, staging=staging, n_buckets=n_buckets)
    run_tasks(split, list(enumerate(files)), backend=backend)  # type: ignore[arg-type]
    finish = partial(finish_bucket, staging=staging, n_files=len(files), out=out)
    run_tasks(finish, list(range(n_buckets)), backend=backend)  # type: ignore[arg-type]
    shutil.rmtree(staging)


def run_ray(files: list[Path], out: Path, n_buckets: int) -> None:
    run_two_phases(files, out, n_buckets, "ray")


def run_local(files: list[Path], out: Path, n_buckets: int) -> None:
    run_two_phases(files, out, n_buckets, "local")


VARIANTS: dict[str, tuple[str, Callable[[list[Path], Path, int], None]]] = {
    "kernel": ("kernel alone", run_kernel),
    "pyarrow": ("pyarrow sort_by, group_by", run_pyarrow),
    "polars": ("polars", run_polars),
    "polars-tuned": ("polars, tuned by hand", partial(run_polars, tuned=True)),
    "local": ("kernel, two phases on disk, no Ray", run_local),
    "ray": ("kernel, two phases, Ray Data", run_ray),
}


# ---- measuring


def family(root: int) -> Iterator[tuple[int, list[str]]]:
    """(pid, fields of /proc/pid/stat after the name) of a process and all its living descendants."""
    stats: dict[int, list[str]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stats[int(entry)] = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
    wanted = {root}
    grown = True
    while grown:
        more = {pid for pid, fields in stats.items() if int(fields[1]) in wanted} - wanted
        wanted |= more
        grown = bool(more)
    return ((pid, stats[pid]) for pid in wanted if pid in stats)


def cpu_seconds() -> float:
    """User and system time of this process, its living descendants, and the dead ones that somebody waited for."""
    return sum(sum(map(int, fields[11:15])) for _, fields in family(os.getpid())) / TICKS


class MemorySampler(threading.Thread):
    """Watches a process tree from outside: peak sum of private memory, plus shared memory counted once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak_kb, self.running = pid, 0, True

    def run(self) -> None:
        while self.running:
            private, shared = 0, 0
            for pid, _ in family(self.pid):
                try:
                    text = Path(f"/proc/{pid}/status").read_text()
                    lines = dict(line.split(":", 1) for line in text.splitlines())
                except (OSError, ValueError):
                    continue
                private += int(lines.get("RssAnon", "0 kB").split()[0])
                shared = max(shared, int(lines.get("RssShmem", "0 kB").split()[0]))
            self.peak_kb = max(self.peak_kb, private + shared)
            time.sleep(0.1)


def run_one(name: str, events: Path, out: Path, n_buckets: int) -> None:
    """Body of a variant's process: prints one JSON line."""
    files = sorted(events.glob("*.parquet"))
    out.mkdir(parents=True)
    pa.set_cpu_count(1)
    record: dict[str, float] = {}
    before = cpu_seconds()
    import pandas  # noqa: F401  (pyarrow imports it at the first conversion from NumPy)

    if name.startswith("polars"):
        import polars  # noqa: F401
    if name == "ray":
        import ray
        import ray.data

        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, **quiet)
        run_tasks(
            time.sleep, [0.5, 0.5], backend="ray"
        )  # so that both workers are up and have imported Ray Data
        record["start_cpu_s"] = cpu_seconds() - before
    print("measured", flush=True)
    cpu, wall = cpu_seconds(), time.perf_counter()
    VARIANTS[name][1](files, out, n_buckets)
    record |= {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}
    print("done", flush=True)
    record["sessions"], record["checksum"] = checksum(out)
    print(json.dumps(record), flush=True)
    if name == "ray":
        ray.shutdown()


def measure(name: str, events: Path, n_buckets: int, work: Path) -> dict:
    """Runs a variant in its own process and watches its memory until its sessions are on disk."""
    options = f"--run {name} --folder {events} --buckets {n_buckets} --out {work / name}"
    command = [sys.executable, __file__, *options.split()]
    env = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | env) as process:
        assert process.stdout is not None
        sampler, record = MemorySampler(process.pid), {}
        sampler.start()
        for line in process.stdout:
            if line.strip() == "measured":
                record["idle_mb"], sampler.peak_kb = sampler.peak_kb / 1024, 0
            elif line.strip() == "done":
                sampler.running = False
                record["peak_mb"] = sampler.peak_kb / 1024
            elif line.startswith("{"):
                record |= json.loads(line)
    shutil.rmtree(work / name, ignore_errors=True)
    if process.returncode:
        raise SystemExit(f"variant {name} failed with exit code {process.returncode}")
    return record


def show(records: dict[str, dict], n_events: int) -> None:
    """Prints the table; the first variant is the unit of the ratios."""
    unit = records[next(iter(records))]["cpu_s"]
    print(f"\n{n_events:,} events, {next(iter(records.values()))['sessions']:,} sessions")
    print(f"{'':36}{'CPU s':>8}{'ratio':>8}{'wall s':>8}{'peak MB':>9}")
    for name, r in records.items():
        line = f"{r['cpu_s']:8.2f}{r['cpu_s'] / unit:8.2f}{r['wall_s']:8.2f}{r['peak_mb']:9.0f}"
        print(f"{VARIANTS[name][0]:36}{line}")
    if "ray" in records:
        r = records["ray"]
        idle = f"{r['start_cpu_s']:.1f} CPU s (not in its line), {r['idle_mb']:.0f} MB (in its peak)"
        print(f"to start Ray with two idle workers takes {idle}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--events", type=int, default=20_000_000, help="how many events, about")
    parser.add_argument("--users", type=int, help="how many users; default a tenth of the events")
    parser.add_argument("--buckets", type=int, default=32, help="user buckets of our variants")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the one with the least CPU counts")
    parser.add_argument("--work", type=Path, default=CACHE, help="folder for the events and scratch files")
    parser.add_argument("--run", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_one(args.run, args.folder, args.out, args.buckets)
        return
    users = args.users or max(1, args.events // 10)
    events = args.work / f"events-{args.events}-{users}"
    if not events.exists():
        print(f"making {args.events:,} events of {users:,} users in {events}", flush=True)
        partial_folder = events.with_suffix(".partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        make_events(partial_folder, args.events, users)
        partial_folder.rename(events)
    size = sum(pq.read_metadata(file).num_rows for file in events.glob("*.parquet"))
    records: dict[str, dict] = {}
    results = set()
    for name in [*args.variants] * args.repeat:
        with tempfile.TemporaryDirectory(dir=args.work) as scratch:
            record = measure(name, events, args.buckets, Path(scratch))
        print(f"{VARIANTS[name][0]}: {record['cpu_s']:.2f} CPU s", file=sys.stderr, flush=True)
        results.add((record["sessions"], record["checksum"]))
        records[name] = min(records.get(name, record), record, key=lambda r: r["cpu_s"])
    show(records, size)
    if len(results) > 1:
        raise SystemExit("the variants do not give the same sessions")
    print("all variants give the same sessions")


if __name__ == "__main__":
    main()
