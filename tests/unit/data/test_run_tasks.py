"""run_tasks in this process; the Ray half is in tests/ray/test_ray_exec.py."""

import sys
import threading
import time

import pytest

from plpm_ray.data.ray_exec import run_tasks


def slow_first(item: int) -> int:
    time.sleep(0.05 if item == 0 else 0.0)
    return item * 10


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_results_keep_the_order_of_items(workers):
    assert run_tasks(slow_first, list(range(6)), workers=workers) == [0, 10, 20, 30, 40, 50]


def test_no_items_no_results():
    assert run_tasks(slow_first, [], backend="ray") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_ends_the_run(workers):
    started = []

    def fails(item: int) -> None:
        started.append(item)
        if item == 2:
            raise KeyError("bad item")
        time.sleep(0.01)

    with pytest.raises(KeyError, match="bad item"):
        run_tasks(fails, list(range(200)), workers=workers)
    assert len(started) < 200


def test_threads_are_used_when_asked_for():
    barrier = threading.Barrier(2, timeout=10)
    run_tasks(lambda _: barrier.wait(), [0, 1], workers=2)


def test_importing_the_module_does_not_import_ray():
    import subprocess

    code = "import sys, plpm_ray.data.ray_exec; print('ray' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend"):
        run_tasks(slow_first, [1], backend="dask")  # type: ignore[arg-type]
