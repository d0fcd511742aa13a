"""A network that RLlib trained -> a learner of our own: the same layers with the same weights, and no Ray."""

from __future__ import annotations

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from torch import nn

from plpm_ray.core.errors import PlpmError
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.navigators.reference.rllib import RLlibNetwork, RLlibNetworkConfig
from plpm_ray.simulation.encoding import WorldFeatures
from plpm_ray.simulation.rllib_config import RLlibConfig

# Where RLlib's default modules keep the encoder of the policy (or of Q) and the head after it.
_PARTS = {
    "dqn": ("encoder.", "af."),
    "ppo": ("encoder.actor_encoder.", "pi."),
    "marwil": ("encoder.actor_encoder.", "pi."),
    "bc": ("_encoder.", "_pi_head."),
}


def export(
    algorithm: Algorithm, config: RLlibConfig, features: WorldFeatures, pages: PageCatalogue, scale_s: float
) -> RLlibNetwork:
    """The trained network as a learner.

    Raises:
        PlpmError: RLlib's module has other layers than expected, as another release of it might.
    """
    name = config.algorithm.name
    learner = RLlibNetwork(
        RLlibNetworkConfig.model_validate(
            {"algorithm": name, "hidden": config.algorithm.hidden, "reward_scale_s": scale_s}
        ),
        features.spec,
        pages,
        features.stats,
    )
    state = algorithm.learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}")  # type: ignore[union-attr]
    weights = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    found = [
        (torch.as_tensor(weights[key]), torch.as_tensor(weights[key.removesuffix("weight") + "bias"]))
        for prefix in _PARTS[name]
        for key in weights
        if key.startswith(prefix) and key.endswith(".weight")
    ]
    layers = [layer for layer in learner.mlp if isinstance(layer, nn.Linear)]
    if [w.shape for w, _ in found] != [layer.weight.shape for layer in layers]:
        raise PlpmError(
            f"RLlib's {name} module has layers of {[tuple(w.shape) for w, _ in found]}, "
            f"expected were {[tuple(layer.weight.shape) for layer in layers]}",
            hint="use the release of Ray that constraints.txt names",
        )
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, found, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return learner.eval()
