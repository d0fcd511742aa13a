"""Sessions per CPU second of the simulated world, without a policy and with IIT deciding, and the memory it takes.

    OMP_NUM_THREADS=1 python benchmarks/world.py                   # random weights of the default size; about a minute
    OMP_NUM_THREADS=1 python benchmarks/world.py --bundle runs/iit

One process, processor time, best of --repeats (others may be using the machine). `without policy` lands on random pages, so
it is the world alone; `logging` runs the heuristics that make the logs; `IIT` keeps the online feature state of every user and
scores every entry, as serving does. Memory: bytes of the arrays that grow with the users, per million of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np

from plpm_ray.core.feature_fitting import SpecFitter
from plpm_ray.core.registry import lookup
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.simulation.arms import world_stats
from plpm_ray.simulation.choosers import LoggingPolicy, MyopicOracle, RandomPage
from plpm_ray.simulation.config import load_world, shipped_worlds
from plpm_ray.simulation.navigated import NavigatorChooser
from plpm_ray.simulation.online import OnlineFeatures, world_schema
from plpm_ray.simulation.simulation import Chooser, Sessions, Simulation, run_days
from plpm_ray.simulation.world import World


def iit(world: World, bundle: str | None) -> Navigator:
    """A trained IIT, or one with random weights: decisions cost the same."""
    if bundle is not None:
        return load_bundle(find_bundle(Path(bundle))).navigator()
    simulation = Simulation(world, np.arange(64))
    online, fitter = OnlineFeatures(world, simulation.users.profile()), SpecFitter(world_schema(world))
    simulation.begin_day()
    entries = simulation.entries()
    assert entries is not None
    fitter.update(online.features(entries))
    cls, stats, spec = lookup("learner", "klan.iit"), world_stats(world.config), fitter.finish()
    return Bundle.of_learner(
        cls(cls.Config(), spec, world.pages, stats), spec, world.pages, stats
    ).navigator()


def sessions_per_s(
    world: World, users: int, days: int, make: type | None, chooser: Chooser | None, repeats: int
) -> float:
    """Best of `repeats`."""
    best = 0.0
    for repeat in range(repeats):
        count = 0

        def sink(sessions: Sessions) -> None:
            nonlocal count
            count += len(sessions)

        picks = chooser or make()  # type: ignore[misc]
        simulation = Simulation(world, np.arange(users) + repeat * users)
        begun = time.process_time()
        run_days(simulation, days, picks, sink)
        best = max(best, count / (time.process_time() - begun))
    return best


def bytes_per_user(*holders: object) -> float:
    """Bytes a user in the arrays of the given objects."""
    total, users = 0, 1
    for holder in holders:
        for value in vars(holder).values():
            if isinstance(value, np.ndarray):
                total, users = total + value.nbytes, max(users, value.shape[-1])
    return total / users


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=16_384, help="users simulated at once")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bundle", help="a trained IIT; default: random weights")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}, OMP_NUM_THREADS={threads}")
    head = f"{'world':<12}{'without policy':>16}{'logging':>12}{'oracle':>12}{'IIT':>12}{'IIT / without':>15}"
    print(f"{head}   sessions per CPU second")
    for name in shipped_worlds():
        world = World(load_world(name))
        size = (arguments.users, arguments.days)
        alone, logged, oracle = (
            sessions_per_s(world, *size, made, None, arguments.repeats)
            for made in (RandomPage, LoggingPolicy, MyopicOracle)
        )
        few = max(arguments.users // 4, 1)
        best = 0.0
        for _ in range(arguments.repeats):
            chooser = NavigatorChooser(world, iit(world, arguments.bundle if name == "kuaishou" else None))
            best = max(best, sessions_per_s(world, few, arguments.days, None, chooser, 1))
        print(f"{name:<12}{alone:>16,.0f}{logged:>12,.0f}{oracle:>12,.0f}{best:>12,.0f}{best / alone:>15.2f}")
    world = World(load_world("kuaishou"))
    simulation = Simulation(world, np.arange(10_000))
    own = bytes_per_user(simulation.users, simulation.state, simulation)
    states = OnlineFeatures(world, simulation.users.profile()).states
    print(
        f"memory per million users: world {own / 1e3:,.2f} GB, online feature states {states.itemsize / 1e3:,.2f} GB"
    )
    print("users are simulated in parts (8,192 at once in an experiment), so this bounds a part, not a run")


if __name__ == "__main__":
    main()
