from __future__ import annotations

import pytest

from plpm_ray.core.errors import DataError
from tests.training_tables import fitted


def test_rewards_that_are_next_to_nothing_are_refused():
    _, stats = fitted()
    assert stats.judged(0.8 * stats.use_s).reward_ratio == pytest.approx(0.8)
    with pytest.raises(DataError, match="takes all of them for drop-offs") as caught:
        stats.judged(1e-8 * stats.use_s)
    assert "tau_s" in str(caught.value)
