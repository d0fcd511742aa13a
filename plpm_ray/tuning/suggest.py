"""Which parameters to try next: Optuna fed from the ledger. Shared by the Ray driver and the local one.

A suggestion depends on the seed, the trial's number and the trials known so far, on nothing else. So a sequential sweep
gives the same trials each time, and also when it is killed and resumed in between; a parallel one depends on the order
in which its trials end.

What Optuna is told of a trial: finished -> its value; stopped early -> pruned at its last epoch, which ranks it
below all finished ones; refused or failed -> pruned without a value, which ranks it last. A refused estimate
never counts as good.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plpm_ray.tuning.ledger import Ledger, TrialRecord
from plpm_ray.tuning.space import Space

if TYPE_CHECKING:
    import optuna

Searcher = Literal["optuna", "random"]


class Suggester:
    """Ask for the next trial, tell what became of it; both go into the ledger.

    Args:
        space: what is searched.
        ledger: trials of earlier runs are known from it, and its unfinished ones come first.
        searcher: "optuna" (tree-structured Parzen estimator, Bergstra et al. 2011) or "random".
        seed: of the suggestions.
        startup: trials drawn at random before the estimator takes over.
        first: points to try first, such as the learner's defaults.
    """

    def __init__(
        self,
        space: Space,
        ledger: Ledger,
        *,
        searcher: Searcher = "optuna",
        seed: int = 0,
        startup: int = 10,
        first: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        import optuna

        self.space = space
        self.ledger = ledger
        self.searcher = searcher
        self.seed = seed
        self.startup = startup
        self.first = [point for point in first if space.encode(point) is not None]
        self._distributions = space.distributions()
        with _quiet():
            self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
            for record in ledger.records.values():
                self._study.add_trial(self._frozen(record))
        self._waiting = dict(sorted(ledger.unfinished.items()))
        self._running: dict[int, tuple[optuna.Trial, dict[str, Any]]] = {}

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Number and parameters of the next trial; unfinished ones of an earlier run come first."""
        while self._waiting:
            number = min(self._waiting)
            params = self._waiting.pop(number)
            if self.space.encode(params) is not None:
                return number, self._draw(number, params)
        number = self.ledger.next_number
        given = dict(self.first[number]) if number < len(self.first) else None
        params = self._draw(number, given)
        self.ledger.start(number, params)
        return number, params

    def tell(self, record: TrialRecord) -> None:
        """Notes the end of a trial that was asked for here."""
        trial, _ = self._running.pop(record.number)
        state, value, steps = self._outcome(record)
        with _quiet():
            for step, reported in steps.items():
                trial.report(reported, step)
            self._study.tell(trial, value, state=state)
        self.ledger.end(record)

    def params(self, number: int) -> dict[str, Any]:
        """Parameters of a running trial."""
        return self._running[number][1]

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(self._running)

    def _draw(self, number: int, given: Mapping[str, Any] | None) -> dict[str, Any]:
        with _quiet():
            if given is not None:
                raw = self.space.encode(given)
                assert raw is not None
                self._study.enqueue_trial(raw)
            self._study.sampler = self._sampler(number)
            trial = self._study.ask(self._distributions)
        params = self.space.decode(trial.params)
        self._running[number] = (trial, params)
        return params

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import optuna

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        with _quiet():
            if self.searcher == "random":
                return optuna.samplers.RandomSampler(seed=seed)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup, constant_liar=True)

    def _frozen(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        import optuna

        state, value, steps = self._outcome(record)
        raw = self.space.encode(record.params)
        if raw is None:
            return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)
        return optuna.trial.create_trial(
            state=state, value=value, params=raw, distributions=self._distributions, intermediate_values=steps
        )

    def _outcome(self, record: TrialRecord) -> tuple[optuna.trial.TrialState, float | None, dict[int, float]]:
        """State, value and value by epoch that Optuna is told."""
        from optuna.trial import TrialState

        if record.status == "finished":
            return TrialState.COMPLETE, record.score, {}
        if record.status == "stopped" and record.score is not None:
            return TrialState.PRUNED, None, {record.epochs: record.score}
        if record.status == "lost":
            return TrialState.FAIL, None, {}
        return TrialState.PRUNED, None, {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its log lines and its notes on experimental arguments; the caller's settings come back."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
