"""What happens in a session: the walk over the pages, drawn; and what it is worth on average, in closed form.

A user wants page w (drawn from the situation) and lands on page a. On w the user stays and may browse on. On another page
the user drops off within seconds, or stays for a while; then leaves the app, or walks on to w and may browse on from there.
`expected` follows the same steps with probabilities, so that oracles know the truth; a test holds the two against each
other.

Letters: B sessions, K pages, P pages of one session at most. All arrays page-major, (K, B) and (P, B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from plpm_ray.simulation import luck
from plpm_ray.simulation.situation import Situation
from plpm_ray.simulation.world import World

# streams of an entry's luck
WANTED, DROP, DWELL, BROWSE = 0, 1, 8, 40
NO_PAGE = -1
LEAST_S = 0.5  # every visit lasts so long, whatever is drawn
_EXACT_MS = 16_384_000  # from here on float32 seconds are more than a millisecond apart


@dataclass(frozen=True)
class Walk:
    """B drawn sessions.

    Attributes:
        pages_PB: (P, B) int16 pages in order, -1 after the last one.
        lived_PB: (P, B) the same as the user felt it; differs only where the landing page changes nothing but names.
        dwell_ms_PB: (P, B) int64, 0 after the last one.
        wanted: (B,) int64 page that was wanted.
        reached: (B,) bool, it was visited for more than a drop-off.
        matched: (B,) bool, the landing page was the wanted one.
        engaged: (B,) bool, the last visit was no drop-off.
    """

    pages_PB: np.ndarray
    lived_PB: np.ndarray
    dwell_ms_PB: np.ndarray
    wanted: np.ndarray
    reached: np.ndarray
    matched: np.ndarray
    engaged: np.ndarray

    @property
    def use_ms(self) -> np.ndarray:
        """(B,) int64."""
        return self.dwell_ms_PB.sum(axis=0)


def draw(world: World, situation: Situation, landing: np.ndarray, keys: np.ndarray) -> Walk:
    """Draws B sessions.

    Args:
        landing: (B,) page on which each begins.
        keys: (B,) luck of the entries.
    """
    config, every = world.config.landing, np.arange(len(landing))
    p_max = world.config.visits.most_pages
    u_wanted, u_drop = luck.pair(keys, WANTED)
    u_stay, u_seconds = luck.pair(keys, DROP)
    wanted = (u_wanted >= situation.wanted_KB.cumsum(axis=0)[:-1]).sum(axis=0)
    # where the landing page changes nothing, the session is that of the wanted page
    first = landing.astype(np.int64) if config.enabled else wanted
    matched = first == wanted
    p_drop = np.where(
        matched,
        config.drop_off_matched,
        config.drop_off * _power(1 - situation.wanted_KB[first, every], config.tolerance),
    )
    dropped = u_drop < p_drop
    seconds = _engaged_s(world, situation.dwell_KB[first, every], keys, 0)
    seconds *= np.where(matched, 1.0, config.mismatch_dwell)
    seconds = np.where(dropped, -config.drop_off_s * np.log(u_seconds), seconds)
    pages_PB = np.full((p_max, len(every)), NO_PAGE, dtype=np.int16)
    dwell_PB = np.zeros((p_max, len(every)))
    pages_PB[0], dwell_PB[0] = first, seconds + LEAST_S
    walked = np.flatnonzero(~matched & (u_stay < np.where(dropped, 1 - config.leave, config.walk_on)))
    pages_PB[1, walked] = wanted[walked]
    mean = situation.dwell_KB[wanted[walked], walked] * np.where(dropped[walked], config.compensation, 1.0)
    dwell_PB[1, walked] = _engaged_s(world, mean, keys[walked], 1) + LEAST_S
    reached = matched & ~dropped
    on_first = np.flatnonzero(reached)
    reached[walked] = True
    for position, rows in ((1, on_first), (2, walked)):
        _browse(world, situation, pages_PB, dwell_PB, keys, rows, position)
    shown_PB = pages_PB
    if not config.enabled:
        shown_PB = _relabelled(pages_PB, landing.astype(np.int16), wanted.astype(np.int16))
    dwell_ms = _as_logged(dwell_PB)
    return Walk(shown_PB, pages_PB, dwell_ms, wanted, reached, matched, ~dropped | (pages_PB[1] >= 0))


def _browse(
    world: World,
    situation: Situation,
    pages_PB: np.ndarray,
    dwell_PB: np.ndarray,
    keys: np.ndarray,
    rows: np.ndarray,
    position: int,
) -> None:
    """Further pages of the given sessions from a position on, in place."""
    for p in range(position, len(pages_PB)):
        u_more, u_page = luck.pair(keys[rows], BROWSE + p)
        going = u_more < situation.browse[rows]
        rows, u_page = rows[going], u_page[going]
        if not len(rows):
            return
        weight = situation.wanted_KB[:, rows]
        weight[pages_PB[p - 1, rows], np.arange(len(rows))] = 0.0
        cumulative = weight.cumsum(axis=0)
        page = (u_page * cumulative[-1] >= cumulative[:-1]).sum(axis=0)
        pages_PB[p, rows] = page
        mean = situation.dwell_KB[page, rows] * world.config.browsing.dwell
        dwell_PB[p, rows] = _engaged_s(world, mean, keys[rows], p) + LEAST_S


def _engaged_s(world: World, mean_s: np.ndarray, keys: np.ndarray, position: int) -> np.ndarray:
    """(n,) log-normal seconds of the given mean."""
    sd = world.config.visits.dwell_sd
    z = ndtri(luck.uniforms(keys, DWELL + position))
    z *= sd
    z -= sd * sd / 2
    return mean_s * np.exp(z, out=z)


def _as_logged(dwell_s: np.ndarray) -> np.ndarray:
    """(P, B) int64 whole milliseconds that logs, which hold float32 seconds, give back exactly."""
    dwell_ms = np.rint(dwell_s * 1000)
    if dwell_ms.max(initial=0.0) >= _EXACT_MS:
        long = dwell_ms >= _EXACT_MS
        dwell_ms[long] = np.rint(dwell_s[long].astype(np.float32).astype(np.float64) * 1000)
    return dwell_ms.astype(np.int64)


def _power(base: np.ndarray, exponent: float) -> np.ndarray:
    return base if exponent == 1.0 else base**exponent


def _relabelled(pages_PB: np.ndarray, landing: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The names of the landing and the wanted page exchanged, so that no page follows itself."""
    return np.where(pages_PB == wanted, landing, np.where(pages_PB == landing, wanted, pages_PB)).astype(
        np.int16
    )


@dataclass(frozen=True)
class Expected:
    """Means over the luck of B sessions, for each landing page.

    Attributes:
        use_KB: (K, B) seconds of the session.
        satisfaction_KB: (K, B) satisfaction, see config.Retention.
        drop_off_KB: (K, B) probability of a landing left within seconds, wanted or not.
        engaged_KKB: (K, K, B) probability of an engaged visit to the second page, among landing and wanted page.
    """

    use_KB: np.ndarray
    satisfaction_KB: np.ndarray
    drop_off_KB: np.ndarray
    engaged_KKB: np.ndarray


def expected(world: World, situation: Situation) -> Expected:
    """What each landing page brings on average (exact but for the millisecond)."""
    config, q, m = world.config.landing, situation.wanted_KB, situation.dwell_KB
    p_max = world.config.visits.most_pages
    k = len(q)
    if not config.enabled:
        return _expected_without_effect(world, situation)
    miss_KB = config.drop_off * _power(1 - q, config.tolerance)
    d0 = config.drop_off_matched
    short = config.drop_off_s + LEAST_S
    first_KB = m + LEAST_S + _browsed(world, situation, p_max - 1)
    later_KB = _browsed(world, situation, p_max - 2)
    matched_KB = d0 * short + (1 - d0) * first_KB
    after_drop_KB = config.compensation * m + LEAST_S + later_KB
    after_stay_KB = m + LEAST_S + later_KB
    # sums over the wanted pages other than the landing page
    others_drop = (q * after_drop_KB).sum(axis=0) - q * after_drop_KB
    others_stay = (q * after_stay_KB).sum(axis=0) - q * after_stay_KB
    missed = (1 - q) * (miss_KB * short + (1 - miss_KB) * (config.mismatch_dwell * m + LEAST_S))
    onward_drop, onward_stay = miss_KB * (1 - config.leave), (1 - miss_KB) * config.walk_on
    use = q * matched_KB + missed + onward_drop * others_drop + onward_stay * others_stay
    onward = onward_drop + onward_stay
    walked = world.config.retention.walked
    satisfaction = q * (1 - d0) + (1 - q) * onward * walked
    engaged = onward[:, None, :] * q[None, :, :]
    diagonal = np.arange(k)
    engaged[diagonal, diagonal] = q * (1 - d0) + (1 - q) * (1 - miss_KB)
    return Expected(use, satisfaction, q * d0 + (1 - q) * miss_KB, engaged)


def _expected_without_effect(world: World, situation: Situation) -> Expected:
    config, q, m = world.config.landing, situation.wanted_KB, situation.dwell_KB
    d0 = config.drop_off_matched
    value = d0 * (config.drop_off_s + LEAST_S) + (1 - d0) * (
        m + LEAST_S + _browsed(world, situation, world.config.visits.most_pages - 1)
    )
    k, same = len(q), np.ones_like(q)
    return Expected(
        use_KB=same * (q * value).sum(axis=0),
        satisfaction_KB=same * (1 - d0),
        drop_off_KB=same * d0,
        engaged_KKB=np.broadcast_to(q * (1 - d0), (k, *q.shape)).copy(),
    )


def _browsed(world: World, situation: Situation, pages: int) -> np.ndarray:
    """(K, B) mean seconds on up to `pages` further pages, by the page that was engaged last."""
    q = situation.wanted_KB
    seen = np.zeros_like(q)
    mean_KB = situation.dwell_KB * world.config.browsing.dwell + LEAST_S
    for _ in range(pages):
        worth = q * (mean_KB + seen)
        seen = situation.browse * (worth.sum(axis=0) - worth) / (1 - q)
    return seen
