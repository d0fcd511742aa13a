"""The plain multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with ReLU between them; the last one is linear.

    Args:
        width_in: inputs.
        hidden: width of each hidden layer; may be empty.
        width_out: outputs.
    """

    def __init__(self, width_in: int, hidden: Sequence[int], width_out: int) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            # in place: the backward pass of a linear layer needs its input only, which ReLU leaves alone
            layers += [nn.Linear(width_in, width), nn.ReLU(inplace=True)]
            width_in = width
        super().__init__(*layers, nn.Linear(width_in, width_out))

    def forward(self, x_BN: Tensor) -> Tensor:
        """(B, width_in) -> (B, width_out)."""
        return super().forward(x_BN)
