"""Small shared pieces of the evaluation's own models: user folds, standardised features, one fit function.

These models judge policies; they are deliberately plain and share nothing with the learners that they judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import splitmix64, user_hash

_PREDICT_ROWS = 65_536


def user_folds(cluster: np.ndarray, n_folds: int, seed: int = 0) -> np.ndarray:
    """Fold 0..n_folds-1 of each row, int64 [N], a hash of its user: no user is in two folds, no order
    matters.

    Args:
        cluster: [N] integer or string user ids.
    """
    salt = splitmix64(np.array([seed], dtype=np.int64))[0]
    return (splitmix64(user_hash(np.asarray(cluster)) ^ salt) % np.uint64(n_folds)).astype(np.int64)


def check_features(x: np.ndarray, n: int) -> np.ndarray:
    """Features as float32 [n, D].

    Raises:
        DataError: another shape or values that are not finite.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2 or x.shape[0] != n:
        raise DataError(f"features have shape {x.shape}, expected [{n}, D]")
    if not np.isfinite(x).all():
        column = int(np.argmax(~np.isfinite(x).all(axis=0)))
        raise DataError(f"feature column {column} holds values that are not finite")
    return x


class Standardiser:
    """(x - mean) / deviation per column, fitted on training rows; constant columns become 0."""

    def __init__(self, x: np.ndarray) -> None:
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = x.std(axis=0, dtype=np.float64).astype(np.float32)
        self.scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) * self.scale

    def design(self, x: np.ndarray) -> np.ndarray:
        """z = [1, standardised x], float64 [N, D + 1]."""
        z = np.empty((len(x), x.shape[1] + 1))
        z[:, 0] = 1.0
        z[:, 1:] = self(x)
        return z


def build_mlp(d_in: int, hidden: Sequence[int], d_out: int, seed: int) -> nn.Sequential:
    """ReLU network d_in -> hidden... -> d_out, linear without hidden layers; no global seed is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(d_in, width), nn.ReLU()]
            d_in = width
        layers.append(nn.Linear(d_in, d_out))
    return nn.Sequential(*layers)


def fit_adam(
    net: nn.Module,
    loss: Callable[[Tensor], Tensor],
    rows: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    validate: Callable[[], float] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
) -> None:
    """Minimise mean loss over rows with AdamW; keep the epoch with the best validation where one is given.

    Args:
        loss: from row numbers int64 [B] to a scalar.
        rows: number of training rows.
        validate: called after each epoch; lower is better.
        optimiser: continue with this one instead of a new AdamW.
    """
    steps = optimiser or torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    best, kept = float("inf"), None
    for _ in range(epochs):
        for batch in torch.randperm(rows, generator=generator).split(batch_size):
            steps.zero_grad(set_to_none=True)
            loss(batch).backward()
            steps.step()
        if validate is not None:
            with torch.no_grad():
                score = validate()
            if score < best:
                best, kept = score, {name: value.clone() for name, value in net.state_dict().items()}
    if kept is not None:
        net.load_state_dict(kept)


def fit_lbfgs(net: nn.Module, loss: Callable[[], Tensor], *, iterations: int) -> None:
    """Minimise a full-batch convex loss with L-BFGS and a strong Wolfe line search."""
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value  # type: ignore[return-value]  # L-BFGS calls float() on it

    optimiser.step(closure)


def predict(net: nn.Module, x: np.ndarray) -> np.ndarray:
    """Outputs of a network for float32 [N, D] as float64 [N, d_out], in pieces of bounded memory."""
    with torch.no_grad():
        parts = [
            net(torch.from_numpy(x[i : i + _PREDICT_ROWS])).numpy() for i in range(0, len(x), _PREDICT_ROWS)
        ]
    return np.concatenate(parts).astype(np.float64)
