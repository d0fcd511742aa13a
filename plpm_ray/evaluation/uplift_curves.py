"""Qini and uplift curves of one treatment arm against control, from a randomised trial.

Users are taken from the highest score to the lowest. Among the first n of them let N_t, N_c be the number of
treated and of control users and Y_t, Y_c the sums of their responses (all of them functions of n; N_T, N_C are
the numbers of the whole trial, N = N_T + N_C). The curves, over the share x = n / N of users, are

    Qini curve            Q(x) = (Y_t - Y_c N_t / N_c) / N_T                                          (1)
    uplift (gain) curve   G(x) = (Y_t / N_t - Y_c / N_c) n / N                                        (2)

(1) is Radcliffe (2007, Using control groups to target on predicted lift), whose incremental responses are
N_T Q; (2) is Gutierrez and Gerardy (2017, Causal inference and uplift modelling: a review of the literature,
eq. 4.1), whose curve is N G. Here both are responses **per user**: what treating the best-scored share x adds,
divided by everybody. Both start at 0 and end at the average effect; a random order goes along the straight
line between, so

    Qini coefficient = area under Q - Q(1) / 2,         AUUC = area under G.                          (3)

Conventions, where libraries differ:

* **Ties.** Users of equal score enter together and the curve is straight between the ends of such a run, so no
  result depends on the order of the rows (causalml and others keep whatever order their sort leaves).
* **Start.** Where the first users hold nobody of control, (1) is undefined (as is (2) without treated users);
  the curve is then straight from (0, 0) to the first point that is defined.
* **Area.** Trapezoids over x. causalml takes the mean of the N + 1 points instead, that is
  (N area + end / 2) / (N + 1) for AUUC; for the Qini coefficient N / (N + 1) times ours.
* **Scale.** "per_user": the unit of the response, see above. "end": divided by |average effect|, causalml's
  `normalize=True`; unstable where the effect is near 0. "perfect" (Qini, responses 0 or 1): divided by the area of the
  optimum curve, on which treated responders come first and control responders last; Radcliffe's Q, and
  `qini_auc_score` of scikit-uplift.
* **Weights.** With weights w every count and sum above is weighted. A known propensity e becomes the weight
  1 / e for treated and 1 / (1 - e) for control users, scaled within each group so that the group keeps its total
  weight; a propensity that is the same for everybody therefore changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.evaluation.uplift_checks import check_column, check_propensity, check_treated, check_weight
from plpm_ray.evaluation.uplift_sums import CumulativeSums, cumulative_sums, stabilised, trapezoid

Scale = Literal["per_user", "end", "perfect"]


@dataclass(frozen=True)
class UpliftCurve:
    """A curve of one arm against control.

    Attributes:
        kind: "qini" (1) or "uplift" (2).
        share: float [P + 1] from 0 to 1, the best-scored share of users.
        gain: float [P + 1], response per user that treating this share adds.
    """

    kind: Literal["qini", "uplift"]
    share: np.ndarray
    gain: np.ndarray

    @property
    def end(self) -> float:
        """The average effect of the treatment, where every order ends."""
        return float(self.gain[-1])

    @property
    def random(self) -> np.ndarray:
        """The straight line of a random order, float [P + 1]."""
        return self.share * self.end

    def area(self) -> float:
        """Area under the curve."""
        return float(trapezoid(self.share, self.gain))

    def area_over_random(self) -> float:
        """Area between the curve and the straight line."""
        return self.area() - self.end / 2

    def thinned(self, points: int = 101) -> UpliftCurve:
        """The curve at evenly spaced shares, for drawing; areas should be taken before."""
        share = np.linspace(0, 1, points)
        return replace(self, share=share, gain=np.interp(share, self.share, self.gain))


def checked_sums(
    score: np.ndarray,
    treated: np.ndarray,
    response: np.ndarray,
    weight: np.ndarray | None,
    propensity: np.ndarray | float | None,
) -> CumulativeSums:
    """As `cumulative_sums`, from arguments as a caller gives them."""
    score = check_column(score, "score")
    n = len(score)
    treated, response = check_treated(treated, n), check_column(response, "response", n)
    if weight is not None:
        weight = check_weight(weight, treated.astype(np.int64), ("control", "treated"))
    if propensity is not None:
        e = check_propensity(propensity, n)
        inverse = 1 / np.where(treated, e, 1 - e)
        weight = stabilised(inverse, treated.astype(np.int64), np.ones(n) if weight is None else weight)
    return cumulative_sums(score, treated, response, weight)


def qini_curve(
    score: np.ndarray,
    treated: np.ndarray,
    response: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    propensity: np.ndarray | float | None = None,
) -> UpliftCurve:
    """Qini curve, equation (1) of this module.

    Args:
        score: float [N], the higher the sooner a user is treated; a predicted effect, or any monotone
            transform of one.
        treated: bool [N], False for control.
        response: float [N], binary or continuous.
        weight: float [N] >= 0, how many users a row stands for.
        propensity: probability of being treated in (0, 1), one or [N], where it differed between users.

    Raises:
        DataError: lengths that differ, values that are not finite, an empty group, a propensity outside (0, 1).
    """
    return UpliftCurve("qini", *checked_sums(score, treated, response, weight, propensity).qini())


def uplift_curve(
    score: np.ndarray,
    treated: np.ndarray,
    response: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    propensity: np.ndarray | float | None = None,
) -> UpliftCurve:
    """Uplift (cumulative gain) curve, equation (2) of this module; arguments and errors as `qini_curve`."""
    return UpliftCurve("uplift", *checked_sums(score, treated, response, weight, propensity).uplift())


def qini_coefficient(
    score: np.ndarray,
    treated: np.ndarray,
    response: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    propensity: np.ndarray | float | None = None,
    scale: Scale = "per_user",
) -> float:
    """Area between the Qini curve and the line of a random order, equation (3); 0 says no better than random.

    Args:
        scale: see this module's text; the other arguments as `qini_curve`.

    Returns:
        In the unit of the response for "per_user", else a ratio (nan where it would be divided by 0).

    Raises:
        DataError: as `qini_curve`; scale "perfect" with a response other than 0 or 1.
        ConfigError: an unknown scale.
    """
    sums = checked_sums(score, treated, response, weight, propensity)
    curve = UpliftCurve("qini", *sums.qini())
    area = curve.area_over_random()
    if scale != "perfect":
        return _scaled(area, curve, scale)
    if not np.isin(np.asarray(response), (0, 1)).all():
        raise DataError(
            "the perfect Qini curve is only defined for responses 0 and 1",
            hint='take scale "per_user" or "end", or make the response binary (used the page or not)',
        )
    perfect = _perfect_curve(sums).area_over_random()
    return area / perfect if perfect else float("nan")


def _perfect_curve(sums: CumulativeSums) -> UpliftCurve:
    """The optimum Qini curve of a binary response: it climbs, rests, and falls."""
    n_treated, n_control, y_treated, y_control = (
        float(column[-1])
        for column in (sums.treated, sums.control, sums.treated_response, sums.control_response)
    )
    n, top = n_treated + n_control, y_treated / n_treated
    share = np.array([0.0, y_treated / n, 1 - y_control / n, 1.0])
    return UpliftCurve("qini", share, np.array([0.0, top, top, top - y_control / n_control]))


def auuc(
    score: np.ndarray,
    treated: np.ndarray,
    response: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    propensity: np.ndarray | float | None = None,
    scale: Literal["per_user", "end"] = "per_user",
) -> float:
    """Area under the uplift curve, equation (3); a random order has half the average effect.

    Arguments, unit and errors as `qini_coefficient`; scale "perfect" is not defined here.
    """
    curve = uplift_curve(score, treated, response, weight=weight, propensity=propensity)
    return _scaled(curve.area(), curve, scale)


def _scaled(area: float, curve: UpliftCurve, scale: str) -> float:
    if scale == "per_user":
        return area
    if scale == "end":
        return area / abs(curve.end) if curve.end else float("nan")
    raise ConfigError(
        f"unknown scale {scale!r} of the {curve.kind} curve",
        hint='take "per_user" or "end"; the Qini coefficient also knows "perfect"',
    )


def uplift_at(
    score: np.ndarray,
    treated: np.ndarray,
    response: np.ndarray,
    share: float,
    *,
    weight: np.ndarray | None = None,
    propensity: np.ndarray | float | None = None,
) -> float:
    """Uplift at k: mean response of treated minus control users among the best-scored share of all users.

    Args:
        share: in (0, 1]; 0.1 is the top tenth of treated and control users together (the "overall" strategy of
            scikit-uplift). The other arguments as `qini_curve`.

    Returns:
        In the unit of the response; nan where the share holds only one of both groups.
    """
    check_share(share)
    return float(checked_sums(score, treated, response, weight, propensity).effect_at(share))


def check_share(share: float) -> None:
    """Raises: ConfigError where share lies outside (0, 1]."""
    if not 0 < share <= 1:
        raise ConfigError(
            f"uplift at a share of {share} was asked for",
            hint="give a share of users in (0, 1], for example 0.1 for the top tenth",
        )
