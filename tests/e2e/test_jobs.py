"""The entry points in jobs/ as `ray job submit` runs them, on a cluster of its own with a token of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.navigators.bundle import load_bundle
from tests.command_line import REPO, free_port, only, until, write_yaml
from tests.world_logs import world_logs

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BIN = Path(sys.executable).parent
SPLIT = "split={valid_days: 1, test_days: 1}"


@dataclass(frozen=True)
class Cluster:
    """A Ray head of this test alone; `folder` is short, since Ray's socket paths may have 107 bytes."""

    folder: Path
    url: str
    environment: dict[str, str]

    def submit(self, *entry_point: str | Path, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir <checkout> -- python <entry point>`, and its output when the job has ended."""
        command = [BIN / "ray", "job", "submit", "--address", self.url, "--working-dir", REPO]
        environment = self.environment | ({} if token is None else {"RAY_AUTH_TOKEN": token})
        if token is not None:
            del environment["RAY_AUTH_TOKEN_PATH"]
        return subprocess.run(
            [*map(str, command), "--", "python", *map(str, entry_point)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )


def answers(url: str) -> bool:
    """Whether the dashboard is up; without a token it refuses, and so shows that it asks for one."""
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    raise AssertionError("the cluster answers without a token")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head on free ports in a folder of its own, ended by its own process group: other clusters are not touched."""
    folder = Path(tempfile.mkdtemp(prefix="plj-"))
    dashboard = free_port()
    options = {"port": free_port(), "dashboard-port": dashboard, "ray-client-server-port": free_port()}
    options |= {"dashboard-agent-listen-port": free_port(), "dashboard-agent-grpc-port": free_port()}
    options |= {"num-cpus": 2, "num-gpus": 0, "object-store-memory": 200_000_000}
    options |= {"min-worker-port": 0, "max-worker-port": 0, "temp-dir": folder / "ray"}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"  # jobs call the same python
    command = [BIN / "ray", "start", "--head", "--block", *(f"--{k}={v}" for k, v in options.items())]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [*map(str, command)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        with contextlib.suppress(TimeoutError):
            until(lambda: head.poll() is not None or answers(url), 90)
        assert head.poll() is None and answers(url), (folder / "head.log").read_text()
        yield Cluster(folder, url, environment)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(30)
        until(lambda: not processes_in(folder), 30)  # workers end by themselves when their raylet is gone
        shutil.rmtree(folder, ignore_errors=True)


def processes_in(folder: Path) -> list[int]:
    """Processes with this folder on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def succeeded(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.timeout(600)
def test_tables_training_and_evaluation_as_jobs(cluster: Cluster) -> None:
    """Nothing is installed on the cluster but what the package needs: the code comes with the upload."""
    out = cluster.folder / "out"
    data = write_yaml(
        out / "data.yaml",
        {"dataset": world_logs(100, 6, policy="logging"), "output": str(out / "tables"), "n_buckets": 2},
    )
    printed = succeeded(cluster.submit("jobs/build_tables.py", data))
    assert "data done" in printed and "succeeded" in printed
    assert read_json(out / "tables" / "summary.json")["backend"] == "ray"
    assert Warehouse.open(out / "tables").transitions.days()

    places = [f"tables={out / 'tables'}", f"run_root={out / 'runs'}"]
    small = ["training.epochs=2", "training.batch_size=512"]
    printed = succeeded(cluster.submit("jobs/train.py", "jobs/train.yaml", *places, SPLIT, *small))
    assert "train done" in printed
    assert load_bundle(only(out / "runs", "iit-*") / "bundle").name == "klan.iit"

    policies = [{"label": "IIT", "bundle": str(out / "runs" / "iit")}, {"navigator": "heuristic.popularity"}]
    judge = write_yaml(out / "evaluate.yaml", {"policies": policies, "judge": {"estimators": ["snips"]}})
    printed = succeeded(cluster.submit("jobs/evaluate.py", judge, *places, SPLIT))
    assert "(the log itself)" in printed and "IIT" in printed
    results = read_json(only(out / "runs", "evaluate-*") / "summary.json")["results"]
    assert [r["policy"] for r in results] == ["(the log itself)", "IIT", "heuristic.popularity"]


def test_a_job_that_would_lose_its_run_fails_and_says_why(cluster: Cluster) -> None:
    ended = cluster.submit("jobs/train.py", "jobs/train.yaml", "tables=/nowhere")
    assert ended.returncode != 0
    assert "run_root 'runs' would lie in the upload of this job" in ended.stdout
    assert "run_root=/shared/runs" in ended.stdout


def test_another_token_is_refused(cluster: Cluster) -> None:
    ended = cluster.submit("jobs/train.py", "--help", token="0" * 64)
    assert ended.returncode != 0
    assert "401" in ended.stdout + ended.stderr or "token" in (ended.stdout + ended.stderr).lower()
