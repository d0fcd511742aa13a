"""Uplift metrics against values that other libraries gave for the same 60 rows.

causalml 0.18.0 (`get_qini`, `get_cumgain`, `qini_score`, `auuc_score`) and scikit-uplift 0.5.1 (`qini_curve`,
`qini_auc_score`, `uplift_at_k` with strategy "overall"). The two rows of the highest scores are one of each group
and have the binary response 0, because the libraries differ in what they do while a group is empty; see
`evaluation.uplift_curves` for the conventions.
"""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.evaluation.uplift_curves import auuc, qini_coefficient, qini_curve, uplift_at, uplift_curve

N = 60
I = np.arange(N)  # noqa: E741
SCORE = (I * 37 % 61) / 61
TREATED = ((I * I + I // 3) % 5 < 2) | (SCORE.max() == SCORE)
CONTINUOUS = np.where(TREATED, (I * 7 % 11) * SCORE, (I * 5 % 13) / 4)
BINARY = ((CONTINUOUS > 1.2) & (SCORE < 0.96)).astype(float)
N_TREATED = 29
AT = [5, 10, 20, 30, 45, 60]

CAUSALML = {
    "continuous": {
        "response": CONTINUOUS,
        "get_qini": [
            14.473360655737704,
            14.655737704918032,
            29.15983606557377,
            35.706364513018315,
            41.85182849936949,
            30.298783712321544,
        ],
        "get_cumgain": [
            24.122267759562842,
            29.311475409836063,
            58.31967213114754,
            82.39930272234997,
            99.12275170903301,
            62.68713871514802,
        ],
        "qini_score": {False: 16.386195042894986, True: 0.5408202256063253},
        "auuc_score": {False: 69.14495406206304, True: 1.1030165912701724},
    },
    "binary": {
        "response": BINARY,
        "get_qini": [0.5, 0.0, 2.0, 4.411764705882353, 5.23076923076923, -0.9677419354838701],
        "get_cumgain": [
            0.8333333333333331,
            0.0,
            3.999999999999999,
            10.180995475113122,
            12.388663967611333,
            -2.0022246941045587,
        ],
        "qini_score": {False: 3.230805032136144, True: 3.3384985332073516},
        "auuc_score": {False: 6.197157925518787, True: 3.0951360972452187},
    },
}


@pytest.mark.parametrize("kind", CAUSALML)
def test_causalml_curves(kind):
    known = CAUSALML[kind]
    assert TREATED.sum() == N_TREATED
    qini = qini_curve(SCORE, TREATED, known["response"])
    assert (qini.gain[AT] * N_TREATED).tolist() == pytest.approx(known["get_qini"], rel=1e-12, abs=1e-12)
    gain = uplift_curve(SCORE, TREATED, known["response"])
    assert (gain.gain[AT] * N).tolist() == pytest.approx(known["get_cumgain"], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", CAUSALML)
def test_causalml_scores(kind):
    """causalml means over the N + 1 points of a curve; trapezoids leave out half of its end.

    At the first row, where one group is still empty, it interpolates the mean effect and we the gain, twice that.
    """
    known = CAUSALML[kind]
    data = SCORE, TREATED, known["response"]
    end, start = qini_curve(*data).end, uplift_curve(*data).gain[1]
    for scale, normalize in (("per_user", False), ("end", True)):
        unit, treated, users = (abs(end), 1, 1) if normalize else (1, N_TREATED, N)
        found = qini_coefficient(*data, scale=scale) * N / (N + 1) * treated
        assert found == pytest.approx(known["qini_score"][normalize], rel=1e-12)
        found = (auuc(*data, scale=scale) * N + (end - start) / 2 / unit) / (N + 1) * users
        assert found == pytest.approx(known["auuc_score"][normalize], rel=1e-12)


def test_scikit_uplift_scores():
    found = qini_coefficient(SCORE, TREATED, BINARY, scale="perfect")
    assert found == pytest.approx(0.30259793540215196, rel=1e-12)
    assert uplift_at(SCORE, TREATED, BINARY, 0.3) == pytest.approx(0.2222222222222222, rel=1e-12)
    assert uplift_at(SCORE, TREATED, BINARY, 0.5) == pytest.approx(0.33936651583710403, rel=1e-12)


def test_scikit_uplift_with_ties():
    tied = np.floor(6 * SCORE)
    curve = qini_curve(tied, TREATED, BINARY)
    assert (curve.share * N).tolist() == pytest.approx([0, 10, 20, 30, 39, 49, 60])
    known = [0.0, 0.0, 2.0, 4.411764705882353, 4.739130434782609, 4.25, -0.9677419354838701]
    assert (curve.gain * N_TREATED).tolist() == pytest.approx(known, abs=1e-12)
    found = qini_coefficient(tied, TREATED, BINARY, scale="perfect")
    assert found == pytest.approx(0.26910914407755476, rel=1e-12)
