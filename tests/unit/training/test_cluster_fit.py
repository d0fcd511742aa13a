"""How a worker group is fitted to the cluster at hand (no cluster needed)."""

from __future__ import annotations

import pytest

from plpm_ray.core.errors import PlpmError
from plpm_ray.training.config import TrainingConfig


def fit(monkeypatch, nodes: list[dict[str, float]], low: int, high: int, **training):
    import ray

    from plpm_ray.training.trainer import fit_to_cluster

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes])
    said: list[str] = []
    workers = high if low == high else (low, high)
    found = fit_to_cluster(TrainingConfig(workers=workers, **training), low, high, said.append)
    return (*found, said)


def test_what_fits_is_left_as_it_is(monkeypatch):
    assert fit(monkeypatch, [{"CPU": 8}], 4, 4, cpus_per_worker=2) == ({"CPU": 2.0}, 4, 4, [])


def test_workers_get_a_share_of_a_cpu_before_there_are_fewer(monkeypatch):
    resources, low, high, said = fit(monkeypatch, [{"CPU": 2}], 4, 4)
    assert (resources, low, high) == ({"CPU": 0.5}, 4, 4) and "0.5 CPUs" in said[0]


def test_then_there_are_fewer_workers(monkeypatch):
    resources, low, high, said = fit(monkeypatch, [{"CPU": 2}], 8, 8)
    assert (resources, low, high) == ({"CPU": 0.5}, 4, 4) and "4 of 8 workers" in said[0]


def test_a_worker_fits_into_one_node(monkeypatch):
    resources, _, high, _ = fit(monkeypatch, [{"CPU": 2}, {"CPU": 2}], 1, 1, cpus_per_worker=4)
    assert resources == {"CPU": 2.0} and high == 1


def test_a_stream_leaves_room_for_its_readers(monkeypatch):
    resources, _, high, _ = fit(monkeypatch, [{"CPU": 2}], 2, 2, data={"mode": "stream"})
    assert high == 2 and 2 - high * resources["CPU"] >= 0.25


def test_elastic_bounds_are_kept_where_they_can_be(monkeypatch):
    assert fit(monkeypatch, [{"CPU": 4}], 1, 3)[1:3] == (1, 3)
    assert fit(monkeypatch, [{"CPU": 1}], 3, 8)[1:3] == (2, 2)


def test_a_cluster_that_scales_up_from_nothing_is_trusted(monkeypatch):
    assert fit(monkeypatch, [{}], 8, 8, cpus_per_worker=4) == ({"CPU": 4.0}, 8, 8, [])


def test_gpus_are_taken_where_there_are_enough(monkeypatch):
    assert fit(monkeypatch, [{"CPU": 8, "GPU": 2}], 2, 2)[0] == {"CPU": 1.0, "GPU": 1.0}
    assert fit(monkeypatch, [{"CPU": 8, "GPU": 1}], 2, 2)[0] == {"CPU": 1.0}
    assert fit(monkeypatch, [{"CPU": 8, "GPU": 2}], 2, 2, device="cpu")[0] == {"CPU": 1.0}
    with pytest.raises(PlpmError, match="GPU"):
        fit(monkeypatch, [{"CPU": 8}], 1, 1, gpus_per_worker=1)
