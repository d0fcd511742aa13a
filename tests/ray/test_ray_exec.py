"""run_tasks on Ray Data: the same results as locally, in the same order, and what happens when things break."""

import functools
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.errors import DataError, PlpmError
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.data.sessionise import bucketise, sessionise
from plpm_ray.data.shards import read_shards, write_shards

pytestmark = pytest.mark.usefixtures("ray_session")


def test_results_come_in_the_order_of_items_and_items_may_be_anything():
    def work(item):
        time.sleep(0.3 if item["k"] == 0 else 0.0)
        return {"k": item["k"], "path": item["path"] / "x", "array": item["array"] + 1}

    items = [{"k": k, "path": Path("a"), "array": np.arange(k)} for k in range(7)]
    results = run_tasks(work, items, backend="ray")
    assert [r["k"] for r in results] == list(range(7))
    assert results[3]["path"] == Path("a/x") and results[3]["array"].tolist() == [1, 2, 3]


def split(item, staging, n_buckets):
    index, path = item
    return write_shards(bucketise(pq.read_table(path), n_buckets), staging, index)


def finish(bucket, staging, n_files, out):
    sessions = sessionise(read_shards(staging, bucket, n_files), gap_ms=60_000)
    pq.write_table(sessions, out / f"bucket={bucket:03d}.parquet")
    return sessions.num_rows


def test_two_phases_give_the_same_files_as_without_ray(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for k in range(5):
        n = 4000
        columns = {
            "user_id": rng.integers(0, 200, n),
            "time_ms": np.sort(rng.integers(0, 10_000_000, n)) + k * 10_000_000,
            "page": rng.integers(0, 4, n).astype(np.int16),
            "duration_ms": rng.integers(0, 50_000, n),
        }
        files.append(tmp_path / f"events-{k}.parquet")
        pq.write_table(pa.table(columns), files[-1])
    tables = {}
    for backend in ("local", "ray"):
        staging, out = tmp_path / backend / "staging", tmp_path / backend / "out"
        out.mkdir(parents=True)
        shards = functools.partial(split, staging=staging, n_buckets=3)
        counts = run_tasks(shards, list(enumerate(files)), backend=backend)
        assert [sum(c) for c in counts] == [4000] * 5
        last = functools.partial(finish, staging=staging, n_files=5, out=out)
        rows = run_tasks(last, range(3), backend=backend)
        tables[backend] = [pq.read_table(out / f"bucket={b:03d}.parquet") for b in range(3)]
        assert [len(t) for t in tables[backend]] == rows
    assert all(a.equals(b) for a, b in zip(tables["local"], tables["ray"], strict=True))


def test_errors_arrive_as_they_were_raised_and_stop_the_run(tmp_path):
    def fails(item):
        (tmp_path / str(item)).touch()
        time.sleep(0.05)
        if item == 1:
            raise DataError("events.parquet is broken", hint="copy it again")

    with pytest.raises(DataError, match="events.parquet is broken") as caught:
        run_tasks(fails, range(200), backend="ray")
    assert caught.value.hint == "copy it again"
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) < 100


def test_foreign_errors_carry_the_traceback_of_the_task():
    def fails(_):
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        run_tasks(fails, [1], backend="ray")
    assert "return 1 / 0" in caught.value.__notes__[0] or "in fails" in caught.value.__notes__[0]


def test_what_cannot_be_pickled_is_said():
    with pytest.raises(PlpmError, match="cannot be pickled"):
        run_tasks(lambda _: (x for x in [1]), [1], backend="ray")


def test_a_killed_worker_is_replaced_and_its_item_run_again(tmp_path):
    def dies_once(item):
        if item == 2 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert run_tasks(dies_once, range(4), backend="ray") == [0, 1, 2, 3]
    assert (tmp_path / "died").exists()


def test_workers_limit_what_runs_at_a_time_and_too_many_cpus_still_run(tmp_path):
    def alone(item):
        os.open(tmp_path / "lock", os.O_CREAT | os.O_EXCL)
        time.sleep(0.05)
        (tmp_path / "lock").unlink()
        return item

    assert run_tasks(alone, range(6), backend="ray", workers=1) == list(range(6))
    assert run_tasks(alone, range(3), backend="ray", num_cpus=64) == [0, 1, 2]


def test_it_is_quiet_and_leaves_settings_as_they_were(capfd):
    from ray.data import DataContext

    context = DataContext.get_current()
    before = (
        context.enable_progress_bars,
        context.print_on_execution_start,
        logging.getLogger("ray.data").level,
    )
    run_tasks(str, [1, 2], backend="ray", progress="Working")
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    after = (
        context.enable_progress_bars,
        context.print_on_execution_start,
        logging.getLogger("ray.data").level,
    )
    assert after == before
