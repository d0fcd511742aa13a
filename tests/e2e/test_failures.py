"""What goes wrong at a user's desk, and what the command line then says: the file, the rule, the line, what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.quarantine import read_rows
from tests.command_line import Ended, done, free_port, only, plpm, plpm_process, refused, write_yaml
from tests.unit.data import own_logs
from tests.world_logs import world_logs

LEARNER = {"name": "reference.bc", "hidden": [8]}
TRAINING = {"epochs": 2, "batch_size": 256, "device": "cpu"}
SPLIT = {"valid_days": 1, "test_days": 1}


def data_config(folder: Path, **settings: Any) -> Path:
    dataset = {**own_logs.DATASET, "path": str(folder / "logs")}
    output = str(folder / "warehouse")
    return write_yaml(
        folder / "data.yaml", {"dataset": dataset, "output": output, "n_buckets": 2, **settings}
    )


def train_config(folder: Path, tables: Path, **settings: Any) -> Path:
    content = {"name": "bc", "run_root": str(folder / "runs"), "tables": str(tables), "split": SPLIT}
    return write_yaml(
        folder / "train.yaml", {**content, "learner": LEARNER, "training": TRAINING, **settings}
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of five days, on which two commands can train."""
    folder = tmp_path_factory.mktemp("tables")
    own_logs.write(folder / "logs", own_logs.sessions(800, days=5))
    done("data", data_config(folder))
    return folder / "warehouse"


def told(ended: Ended) -> str:
    """An error raised on purpose; the message may speak for itself, without a hint."""
    assert ended.code == 2 and ended.err.startswith("error: ") and "Traceback" not in ended.err
    return ended.err


def committed(warehouse: Path) -> bool:
    """Whether readers would find any sessions."""
    return (warehouse / "sessions" / "_manifest.json").exists() or (warehouse / "manifest.json").exists()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def damaged_within(file: Path) -> None:
    """A footer as it was over pages that are not: found only when the rows are read."""
    data = bytearray(file.read_bytes())
    data[200:2000] = bytes(1800)
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncated, damaged_within])
def test_a_corrupt_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    logs = own_logs.write(tmp_path / "logs", *(own_logs.sessions(200, seed) for seed in range(3)))
    damage(logs / "part-1.parquet")
    message = refused(plpm("data", data_config(tmp_path)))
    assert str(logs / "part-1.parquet") in message and "cannot be read as Parquet" in message
    assert "copy the file again" in message
    assert not committed(tmp_path / "warehouse")


def bad_logs(folder: Path) -> Path:
    """1000 rows in two files, 20 of them bad, 14 by the same rule in the second file."""
    table = own_logs.sessions(1000)
    faults = {i * 40: {"landing_page": "nowhere"} for i in range(6)}
    faults |= {600 + i * 20: {"exit_time": None} for i in range(14)}
    for row, values in faults.items():
        table = own_logs.changed(table, row, **values)
    return own_logs.write(folder / "logs", table.slice(0, 500), table.slice(500))


def test_two_percent_of_bad_rows_stop_the_run(tmp_path: Path) -> None:
    logs = bad_logs(tmp_path)
    message = refused(plpm("data", data_config(tmp_path)))
    assert "20 of 1,000 rows (2.00%) break a rule, more than the 1.00%" in message
    assert (
        f"Most in {logs / 'part-1.parquet'}: null_time in 14 rows, for example row 100: user_id=" in message
    )
    assert "max_bad_share" in message and "nothing was committed" in message
    assert not committed(tmp_path / "warehouse")
    refused(plpm("train", train_config(tmp_path, tmp_path / "warehouse")))


def test_a_higher_limit_lets_them_pass_and_accounts_for_every_row(tmp_path: Path) -> None:
    bad_logs(tmp_path)
    printed = done("data", data_config(tmp_path, max_bad_share=0.05))
    assert "null_time 14, unknown_page 6" in printed
    summary = read_json(tmp_path / "warehouse" / "summary.json")
    assert (summary["rows_in"], summary["sessions"], summary["quarantined_rows"]) == (1000, 980, 20)
    kept = {f"{s}" for s in own_logs.stored(tmp_path / "warehouse")["session_id"].to_pylist()}
    rows = read_rows(tmp_path / "warehouse")
    assert set(rows["reason"].to_pylist()) == {"null_time", "unknown_page"}
    bad = {f"{s}" for s in rows["session_id"].to_pylist()}
    assert kept | bad == {f"{s}" for s in own_logs.sessions(1000)["session_id"].to_pylist()}
    assert len(kept) + len(bad) == 1000


def test_a_stopped_run_leaves_the_days_before_as_they_were(tmp_path: Path) -> None:
    own_logs.write(tmp_path / "logs", own_logs.sessions(300))
    done("data", data_config(tmp_path))
    before = own_logs.snapshot(tmp_path / "warehouse")
    bad_logs(tmp_path)
    refused(plpm("data", data_config(tmp_path)))
    assert own_logs.snapshot(tmp_path / "warehouse") == before


@pytest.mark.parametrize(
    ("old", "new", "where", "nearest"),
    [
        ("n_buckets: 2", "n_bucket: 2", "data.yaml:13: unknown key 'n_bucket'", "did you mean 'n_buckets'?"),
        (
            "  context:",
            "  contxt:",
            "data.yaml:8: unknown key 'contxt' in dataset",
            "did you mean 'context'?",
        ),
        ("name: canonical", "name: canonicl", "unknown dataset 'canonicl'", "did you mean 'canonical'?"),
        ("device: categorical", "device: categoric", "data.yaml:10: dataset.context.device", "'categorical'"),
    ],
)
def test_a_typo_is_shown_with_line_and_nearest_name(
    tmp_path: Path, old: str, new: str, where: str, nearest: str
) -> None:
    config = data_config(tmp_path)
    text = config.read_text()
    assert text.count(old) == 1
    config.write_text(text.replace(old, new))
    message = told(plpm("data", config))
    assert where in message and nearest in message


def test_typos_in_a_learner_and_in_an_override_are_shown_too(tmp_path: Path, tables: Path) -> None:
    config = train_config(tmp_path, tables, learner={**LEARNER, "label_smooth": 0.1})
    line = config.read_text().splitlines().index("  label_smooth: 0.1") + 1
    message = refused(plpm("train", config))
    assert f"train.yaml:{line}: unknown key 'label_smooth' in learner" in message
    assert "did you mean 'label_smoothing'?" in message
    message = refused(plpm("train", train_config(tmp_path, tables), "--set", "training.epoch=3"))
    assert "--set training.epoch=3: unknown key 'epoch' in training" in message
    assert "did you mean 'epochs'?" in message
    assert "does not exist" in refused(plpm("train", tmp_path / "absent.yaml"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`tiny_disk("64k")` gives a folder on a file system of that size."""
    mounted = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            made = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("a full disk is made with `mount`, which is not here")
        if made.returncode != 0:
            pytest.skip(f"a full disk needs the right to mount a small file system: {made.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def assert_full(message: str, place: Path) -> None:
    assert f"writing {place}" in message and "No space left on device" in message
    assert "the disk is full; free space or point the run folder at another disk" in message


@pytest.mark.parametrize("size", ["4k", "48k"])  # full at the first record, and at the first checkpoint
def test_a_full_disk_under_the_run_folder(tmp_path, tables, tiny_disk, size) -> None:
    disk = tiny_disk(size)
    config = train_config(tmp_path, tables, learner={**LEARNER, "hidden": [64]}, run_root=str(disk / "runs"))
    assert_full(refused(plpm("train", config)), disk)
    assert not list(disk.rglob("bundle")) and not list(disk.rglob("summary.json"))


def test_a_run_goes_on_when_the_disk_has_room_again(tmp_path, tables, tiny_disk) -> None:
    disk = tiny_disk("48k")
    config = train_config(tmp_path, tables, learner={**LEARNER, "hidden": [64]}, run_root=str(disk / "runs"))
    refused(plpm("train", config))
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    assert "train done" in done("train", config)
    assert (only(disk / "runs", "bc-*") / "bundle" / "bundle.json").exists()


def test_a_full_disk_under_the_tables(tmp_path, tiny_disk) -> None:
    own_logs.write(tmp_path / "logs", own_logs.sessions(3000))
    disk = tiny_disk("100k")
    message = refused(plpm("data", data_config(tmp_path, output=str(disk / "warehouse"))))
    assert_full(message, disk / "warehouse")
    assert not committed(disk / "warehouse") and not list((disk / "warehouse").glob(".staging-*"))


def test_a_full_disk_under_decisions(tmp_path, tables, tiny_disk) -> None:
    done("train", train_config(tmp_path, tables))
    disk = tiny_disk("4k")
    files = {
        "entries": str(tmp_path / "entries.parquet"),
        "output": str(disk / "decided" / "decisions.parquet"),
    }
    times = np.random.default_rng(0).integers(1_715_000_000_000, 1_716_000_000_000, 5000)
    pq.write_table(pa.table({"user_id": np.arange(5000), "entry_time": times}), files["entries"])
    config = write_yaml(tmp_path / "decide.yaml", {"bundle": str(tmp_path / "runs" / "bc"), **files})
    assert_full(refused(plpm("decide", config)), disk / "decided")
    assert not list((disk / "decided").iterdir())


def test_another_config_never_resumes_an_old_run(tmp_path: Path, tables: Path) -> None:
    config = train_config(tmp_path, tables)
    done("train", config)
    first = only(tmp_path / "runs", "bc-*")
    assert "train done before; nothing was run" in done("train", config)
    printed = done("train", config, "--set", "learner.label_smoothing=0.2")
    assert "train done\n" in printed and "before" not in printed and "resumed" not in printed
    (second,) = (path for path in (tmp_path / "runs").glob("bc-*") if path != first)

    # even a folder that was given the old run's name: it says whose it is, and in what it differs
    second.rename(tmp_path / "kept")
    first.rename(second)
    message = refused(plpm("train", config, "--set", "learner.label_smoothing=0.2"))
    assert "holds a run of another config (differs in config.label_smoothing)" in message


def test_other_tables_never_resume_an_old_run(tmp_path: Path) -> None:
    own_logs.write(tmp_path / "logs", own_logs.sessions(800, days=5))
    done("data", data_config(tmp_path))
    done("train", train_config(tmp_path, tmp_path / "warehouse"))
    own_logs.write(tmp_path / "logs", own_logs.sessions(850, days=5))
    done("data", data_config(tmp_path))
    assert "train done\n" in done("train", train_config(tmp_path, tmp_path / "warehouse"))
    assert len(list((tmp_path / "runs").glob("bc-*"))) == 2


def test_a_bundle_is_not_judged_on_days_it_was_trained_on(tmp_path: Path, tables: Path) -> None:
    done("train", train_config(tmp_path, tables))
    content = {
        "run_root": str(tmp_path / "runs"),
        "tables": str(tables),
        "policies": [{"bundle": str(tmp_path / "runs" / "bc")}],
    }
    config = write_yaml(tmp_path / "evaluate.yaml", {**content, "split": {"valid_days": 1, "test_days": 3}})
    message = refused(plpm("evaluate", config))
    assert "was trained on 2024-05-03, a day it is to be judged on" in message
    assert "use the same `split`" in message


def test_a_bundle_is_not_judged_on_tables_of_another_dataset(tmp_path: Path, tables: Path) -> None:
    done("train", train_config(tmp_path, tables))
    demo = {
        "dataset": world_logs(30, 5),
        "output": str(tmp_path / "demo"),
        "n_buckets": 1,
    }
    done("data", write_yaml(tmp_path / "demo.yaml", demo))
    content = {
        "tables": str(tmp_path / "demo"),
        "split": SPLIT,
        "policies": [{"bundle": str(tmp_path / "runs" / "bc")}],
    }
    message = refused(plpm("evaluate", write_yaml(tmp_path / "evaluate.yaml", content)))
    assert "was trained on other pages or columns" in message and "evaluate.yaml:" in message


def test_the_console_script_ends_with_the_same_status(tmp_path: Path) -> None:
    ended = plpm_process("train", tmp_path / "absent.yaml")
    assert "does not exist" in refused(ended)


def test_too_few_days_are_said(tmp_path: Path, tables: Path) -> None:
    days = len(Warehouse.open(tables).transitions.days())
    message = told(plpm("train", train_config(tmp_path, tables, split={"valid_days": 3, "test_days": 3})))
    assert str(days) in message and "days" in message


def test_a_port_that_a_running_serve_does_not_listen_on(
    tmp_path: Path, tables: Path, ray_session: None
) -> None:
    """Ray Serve keeps the address it was started with; nothing would answer where the command says."""
    from ray import serve

    done("train", train_config(tmp_path, tables))
    there, elsewhere = free_port(), free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": there})
    try:
        content = {"bundle": str(tmp_path / "runs" / "bc"), "port": elsewhere, "num_cpus": 0.5}
        message = refused(plpm("serve", write_yaml(tmp_path / "serve.yaml", content)))
        assert f"not at http://127.0.0.1:{elsewhere}" in message and "serve shutdown" in message
        status = serve.status()
        assert status.proxies and not status.applications
    finally:
        serve.shutdown()
