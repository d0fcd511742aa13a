"""What chooses the pages of logs: the `policy` of a `world` dataset and of `plpm simulate logs`.

A name (`logging`, `random`, an oracle, or a page), or a section of an arm of an experiment: `{navigator: heuristic.x}`,
`{bundle: runs/x, policy: {kind: softmax}}`, `{builtin: logging}`, `{page: featured}`, each with an optional `explore`, the
share of entries whose page is drawn evenly. Propensities are known, and true, for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from plpm_ray.core.config import ConfigSource, KeyPath, nearest, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.policies.base import Choice, uniforms
from plpm_ray.simulation.choosers import BUILTINS, FixedPage, builtin_chooser
from plpm_ray.simulation.simulation import Chooser, Entries, Sessions, Simulation
from plpm_ray.simulation.world import World

if TYPE_CHECKING:
    from plpm_ray.simulation.arms import ArmConfig

PolicySection = str | dict[str, Any]
_EXPLORE_SEED = 11


class Explored:
    """Another chooser, but in a known share of the entries any page with the same probability.

    Args:
        inner: gives the probabilities of all pages.
        share: of the entries, 0 to 1.
        seed: of the draws; another one than that of `inner`, whose draws would otherwise be the same.
    """

    def __init__(self, inner: Chooser, share: float, seed: int = _EXPLORE_SEED) -> None:
        self.inner, self.share, self.seed = inner, share, seed
        self.name = f"{chooser_name(inner)}, {share:g} even"

    def choose(self, simulation: Simulation, entries: Entries) -> Choice:
        choice = self.inner.choose(simulation, entries)
        k = choice.probabilities.shape[1]
        u = uniforms(self.seed, entries.user_hash, entries.entry_ms) / self.share
        page = np.where(u < 1, np.minimum(u * k, k - 1), choice.page).astype(np.int16)
        probs = (1 - self.share) * choice.probabilities + self.share / k
        return Choice(page, probs[np.arange(len(page)), page], probs)

    def observe(self, simulation: Simulation, sessions: Sessions) -> None:
        self.inner.observe(simulation, sessions)


def chooser_name(chooser: Chooser) -> str:
    """Name of a chooser in the column `policy` of logs."""
    return str(getattr(chooser, "name", type(chooser).__name__))


def make_policy(
    world: World,
    policy: PolicySection,
    plugins: tuple[str, ...] = (),
    source: ConfigSource | None = None,
    section: KeyPath = ("policy",),
) -> Chooser:
    """The chooser of a policy section; it keeps the state of the users of one simulation.

    Raises:
        ConfigError, BundleError: unknown name, page, key or bundle, or one that was made for other pages.
    """
    if isinstance(policy, str):
        return _named(world, policy)
    from plpm_ray.simulation.arms import make_chooser

    arm, explore = _arm(policy, source, section)
    chooser = make_chooser(world, arm, plugins)
    seed = _EXPLORE_SEED + (arm.policy.seed == _EXPLORE_SEED)
    return Explored(chooser, explore, seed) if explore else chooser


def policy_version(
    world: World,
    policy: PolicySection,
    plugins: tuple[str, ...] = (),
    source: ConfigSource | None = None,
    section: KeyPath = ("policy",),
) -> str:
    """Checks a policy section as `make_policy` does, before anything is simulated.

    Returns:
        What identifies the chooser beside its section: the version of a bundle.

    Raises:
        ConfigError, BundleError: as in `make_policy`; with file and line where `source` is given.
    """
    if isinstance(policy, str):
        return chooser_name(_named(world, policy))
    from plpm_ray.simulation.arms import check_arm

    arm, _ = _arm(policy, source, section)
    return check_arm(world.config, arm, plugins, source or ConfigSource({}, "config", {}, {}), section)


def resolved_policy(policy: PolicySection) -> PolicySection:
    """The section with the bundle's folder in full: `runs/<name>` means its newest run, today and on this machine."""
    if isinstance(policy, str) or "bundle" not in policy:
        return policy
    from plpm_ray.navigators.bundle import find_bundle

    return {**policy, "bundle": str(find_bundle(str(policy["bundle"])).resolve())}


def _named(world: World, name: str) -> Chooser:
    if name in BUILTINS:
        return builtin_chooser(name)
    if name in world.pages.names:
        return FixedPage(world, world.pages.index(name))
    known = [*BUILTINS, *world.pages.names]
    raise ConfigError(
        f"unknown policy {name!r}", hint=nearest(name, known) or f"known are {', '.join(known)}"
    )


def _arm(policy: dict[str, Any], source: ConfigSource | None, section: KeyPath) -> tuple[ArmConfig, float]:
    from plpm_ray.simulation.arms import ArmConfig

    given = source or ConfigSource({}, "config", {}, {})
    explore = policy.get("explore", 0.0)
    if not isinstance(explore, int | float) or isinstance(explore, bool) or not 0 <= explore <= 1:
        raise ConfigError(
            f"{given.where((*section, 'explore'))}: explore is {explore!r}", hint="a share from 0 to 1"
        )
    arm = {key: value for key, value in policy.items() if key != "explore"}
    return validate(ArmConfig, given, section, arm), float(explore)
