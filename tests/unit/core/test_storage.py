"""Atomic files, clear storage errors, the registry."""

import errno
import logging
import os

import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError, DataError, StorageError
from plpm_ray.core.registry import load_plugins, lookup, register
from plpm_ray.core.storage import (
    atomic_writer,
    name_of_run,
    newest_run,
    read_json,
    read_parquet,
    renew,
    runs_named,
    write_json,
    write_parquet,
)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_writer(path) as file:
        file.write(b"half")
        raise RuntimeError("killed")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_says_so(tmp_path):
    with pytest.raises(StorageError, match="No space left") as error, atomic_writer(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free space" in str(error.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full, which Linux has")
def test_a_real_full_device_is_translated(tmp_path):
    from plpm_ray.core.storage import storage_errors

    with (
        pytest.raises(StorageError, match="disk is full"),
        storage_errors("writing /dev/full"),
        open("/dev/full", "wb", 0) as file,
    ):
        file.write(b"x" * 10_000)


def test_damaged_parquet_and_missing_columns_name_the_file(tmp_path):
    good = tmp_path / "good.parquet"
    write_parquet(good, pa.table({"a": [1]}))
    with pytest.raises(DataError, match=r"good.parquet has no column 'b'"):
        read_parquet(good, ["b"])
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read as Parquet"):
        read_parquet(bad)


def test_damaged_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(StorageError, match=r"a.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_plugins_register_and_unknown_names_get_a_hint(tmp_path):
    plugin = tmp_path / "my_dataset_plugin.py"
    plugin.write_text(
        "from plpm_ray.core.registry import register\n@register('dataset', 'test.plugin_data')\nclass Mine: pass\n"
    )
    load_plugins([str(plugin)])
    load_plugins([str(plugin)])
    assert lookup("dataset", "test.plugin_data").name == "test.plugin_data"
    with pytest.raises(
        ConfigError, match=r"unknown dataset 'test.plugin_dat'.*\n.*did you mean 'test.plugin_data'"
    ):
        lookup("dataset", "test.plugin_dat")
    with pytest.raises(ConfigError, match="does not exist"):
        load_plugins([str(tmp_path / "none.py")])
    with pytest.raises(ConfigError, match="registered twice"):
        register("dataset", "test.plugin_data")(type("Other", (), {}))


def test_a_run_is_not_taken_for_that_of_a_longer_name(tmp_path):
    folders = ["klan-0123456789", "klan-am-0123456789-abcdef0123", "klan-isp-0123456789", "klan2-0123456789"]
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "summary.json").write_text("{}")
    assert [run.name for run in runs_named(tmp_path / "klan")] == ["klan-0123456789"]
    assert [run.name for run in runs_named(tmp_path / "klan-am")] == ["klan-am-0123456789-abcdef0123"]
    assert newest_run(tmp_path / "klan-isp", ["summary.json"]) == tmp_path / "klan-isp-0123456789"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/klan-0123456789", "runs/klan"),
        ("runs/klan-am-0123456789-abcdef0123", "runs/klan-am"),
        ("runs/mine", "runs/mine"),
    ],
)
def test_the_name_of_a_run_is_its_folder_without_hashes(folder, name):
    assert str(name_of_run(folder)) == name


def test_a_run_that_is_renewed_is_the_newest_of_its_name_and_the_log_says_which_is(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    old, new = (tmp_path / f"klan-{i:010x}" for i in range(2))
    for age, run in enumerate((old, new)):
        write_json(run / "summary.json", {})
        os.utime(run / "summary.json", (age, age))
    assert newest_run(old, ["summary.json"]) == old and not caplog.messages
    assert newest_run(tmp_path / "klan", ["summary.json"]) == new
    assert caplog.messages == [f"{tmp_path / 'klan'} means {new}, the latest of 2 runs of that name"]
    assert renew(old, ["summary.json"])
    assert newest_run(tmp_path / "klan", ["summary.json"]) == old


def test_a_run_that_may_not_be_touched_stays_as_it_is(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    write_json(tmp_path / "run" / "summary.json", {})
    monkeypatch.setattr(os, "utime", refuse)
    assert not renew(tmp_path / "run", ["summary.json"])
