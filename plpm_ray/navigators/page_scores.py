"""Which models score pages, and so can choose them; others say numbers (`Learner.says`) that navigators are made of."""

from __future__ import annotations

from plpm_ray.core.errors import BundleError
from plpm_ray.navigators.base import LearnerNavigator, Navigator


def page_scorer(navigator: Navigator) -> Navigator:
    """The navigator itself.

    Raises:
        BundleError: it is a learner that says something else than scores of pages.
    """
    says = navigator.learner.says if isinstance(navigator, LearnerNavigator) else None
    if says is not None:
        raise BundleError(
            f"{navigator.name} says {' and '.join(says)}, and chooses no pages",
            hint="judge it with `plpm assess`; pages are chosen by a navigator that it is a part of",
        )
    return navigator
