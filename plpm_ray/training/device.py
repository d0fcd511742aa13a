"""Where and with what a loop computes: device, optimiser, random state."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from plpm_ray.core.errors import ConfigError
from plpm_ray.training.config import TrainingConfig


def pick_device(config: TrainingConfig) -> torch.device:
    """The config's device; `auto` is the current GPU where there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but PyTorch sees no GPU here", hint="set device to auto or cpu")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")


def make_optimiser(learner: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam, or AdamW with weight decay, over the trainable parameters; one fused kernel per step.

    For a recorded step the learning rate is a tensor, which `set_rate` changes where it lies.
    """
    parameters = [p for p in learner.parameters() if p.requires_grad]
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(
        parameters,
        lr=torch.tensor(config.lr, device=parameters[0].device) if config.cuda_graph else config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
        capturable=config.cuda_graph,
    )


def set_rate(optimiser: torch.optim.Optimizer, config: TrainingConfig, done: float) -> None:
    """The learning rate after a share `done` of all steps, 0 to 1, for all parameters."""
    if config.lr_schedule == "constant":
        return
    rate = config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def take_step(optimiser: torch.optim.Optimizer, loss: Tensor, grad_clip: float | None) -> None:
    """One update of the parameters, their gradient's norm cut to `grad_clip`; without a word to the CPU."""
    parameters: list[Tensor] = optimiser.param_groups[0]["params"]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()
    if grad_clip is not None:
        nn.utils.clip_grad_norm_(parameters, grad_clip, foreach=True)
    optimiser.step()


def random_state(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
