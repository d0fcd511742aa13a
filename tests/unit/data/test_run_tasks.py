"""run_tasks in processes: results in order, errors as they were raised, and a killed process said so."""

from __future__ import annotations

import os
import signal

import pytest

from plpm_ray.core.errors import DataError, PlpmError
from plpm_ray.data.ray_exec import run_tasks


def square(item: int) -> tuple[int, int, str | None]:
    return item * item, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def refuse(item: int) -> None:
    raise DataError(f"item {item} is bad", hint="leave it out")


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_keep_the_order_and_have_one_thread_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = run_tasks(square, list(range(6)), backend="processes", workers=2)
    assert [f[0] for f in found] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {f[1] for f in found} and {f[2] for f in found} == {"1"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_error_of_a_task_comes_through():
    with pytest.raises(DataError, match="item 3 is bad") as error:
        run_tasks(refuse, [3], backend="processes", workers=1)
    assert error.value.hint == "leave it out"


def test_a_killed_process_is_an_error_with_advice():
    with pytest.raises(PlpmError, match="killed"):
        run_tasks(die, [1, 2], backend="processes", workers=1)
