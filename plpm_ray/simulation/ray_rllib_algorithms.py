"""RLlib's algorithms as our config asks for them: new API stack, plain MLPs, no observation filters, sizes that fit."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.tune
from gymnasium.spaces import Space
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc import BC, BCConfig
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.marwil import MARWIL, MARWILConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from plpm_ray.simulation.env import ENV_ID, LandingPageEnv
from plpm_ray.simulation.ray_rllib_offline import Logged, LoggedColumns
from plpm_ray.simulation.rllib_config import (
    BCSettings,
    DQNSettings,
    MARWILSettings,
    OfflineSettings,
    PPOSettings,
    RLlibConfig,
)
from plpm_ray.simulation.vector_env import LandingPageVectorEnv

_FRAGMENT, _SMOOTHED_EPISODES = 4, 1000
_NORM_RATE = 1e-8  # RLlib's own: the norm of the advantages stays where it began


class _OwnFolder:
    """RLlib would make a folder for logs in the home folder; nothing is ever written to it, so a temporary one does."""

    def _setup_logdir(self) -> None:
        self._log_folder = tempfile.TemporaryDirectory(prefix="plpm-rllib-", ignore_cleanup_errors=True)
        self._logdir = self._log_folder.name


class _DQN(_OwnFolder, DQN):
    pass


class _PPO(_OwnFolder, PPO):
    pass


class _BC(_OwnFolder, BC):
    pass


class _MARWIL(_OwnFolder, MARWIL):
    pass


@dataclass(frozen=True)
class Experience:
    """What an algorithm learns from: arguments of the environment, or logged sessions with their spaces."""

    env: Mapping[str, Any] | None = None
    logged: Logged | None = None
    spaces: tuple[Space, Space] | None = None


def build(config: RLlibConfig, experience: Experience, runners: int) -> Algorithm:
    """The algorithm, ready for `train()`; the process must have joined a cluster.

    Args:
        runners: actors that run environments, from `fit_runners`.
    """
    settings = config.algorithm
    make: dict[str, Callable[[Any], AlgorithmConfig]] = {
        "dqn": _dqn,
        "ppo": _ppo,
        "bc": _bc,
        "marwil": _marwil,
    }
    made = make[settings.name](settings)
    made.training(lr=settings.lr, gamma=settings.gamma, grad_clip=settings.grad_clip)
    made.training(grad_clip_by="global_norm", train_batch_size_per_learner=settings.batch_size)
    made.framework("torch").debugging(seed=config.seed, log_level="ERROR")
    made.learners(num_learners=0)
    made.reporting(metrics_num_episodes_for_smoothing=_SMOOTHED_EPISODES)
    made.rl_module(
        model_config=DefaultModelConfig(
            fcnet_hiddens=list(settings.hidden), fcnet_activation="relu", vf_share_layers=False
        )
    )
    if experience.env is not None:
        ray.tune.register_env(ENV_ID, _make_env)
        made.environment(ENV_ID, env_config=dict(experience.env), normalize_actions=False, clip_actions=False)
        made.env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=config.envs_per_runner,
            num_cpus_per_env_runner=config.num_cpus_per_env_runner,  # pyright: ignore[reportArgumentType]
            gym_env_vectorize_mode="vector_entry_point",
        )
    else:
        assert isinstance(settings, OfflineSettings)
        _offline(made, settings, experience)
    algorithm = made.build_algo()
    if isinstance(settings, DQNSettings):
        # RLlib seeds everything but the draws from the replay buffer
        buffer: Any = algorithm.local_replay_buffer
        buffer.rng = np.random.default_rng(config.seed)
    return algorithm


def _make_env(arguments: Mapping[str, Any]) -> Any:
    """RLlib asks for a batch of environments by `num_envs`."""
    return LandingPageVectorEnv(**arguments) if "num_envs" in arguments else LandingPageEnv(**arguments)


def _dqn(settings: DQNSettings) -> AlgorithmConfig:
    made = DQNConfig(algo_class=_DQN)
    made.training(
        epsilon=[[0, settings.epsilon_from], [settings.epsilon_steps, settings.epsilon_to]],  # pyright: ignore[reportArgumentType]
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": settings.buffer_steps},
        num_steps_sampled_before_learning_starts=settings.learning_starts,
        training_intensity=settings.replay_ratio,
        target_network_update_freq=0,  # after every update
        tau=settings.tau,
        td_error_loss_fn=settings.loss,
        double_q=settings.double_q,
        dueling=False,
        noisy=False,
        num_atoms=1,
        n_step=1,
    )
    made.env_runners(rollout_fragment_length=_FRAGMENT)
    return made.reporting(min_sample_timesteps_per_iteration=settings.steps_per_iteration)


def _ppo(settings: PPOSettings) -> AlgorithmConfig:
    return PPOConfig(algo_class=_PPO).training(
        minibatch_size=settings.minibatch_size,
        num_epochs=settings.epochs,
        clip_param=settings.clip,
        lambda_=settings.lambda_,
        entropy_coeff=settings.entropy,
        vf_clip_param=settings.vf_clip,
        use_kl_loss=False,
    )


def _bc(settings: BCSettings) -> AlgorithmConfig:
    return BCConfig(algo_class=_BC)


def _marwil(settings: MARWILSettings) -> AlgorithmConfig:
    return MARWILConfig(algo_class=_MARWIL).training(beta=settings.beta, vf_coeff=settings.vf_coeff)


def _offline(made: AlgorithmConfig, settings: OfflineSettings, experience: Experience) -> None:
    assert experience.spaces is not None and experience.logged is not None
    if isinstance(settings, MARWILSettings):
        assert isinstance(made, MARWILConfig)
        made.training(
            moving_average_sqd_adv_norm_start=experience.logged.return_variance,
            moving_average_sqd_adv_norm_update_rate=_NORM_RATE,
        )
    made.environment(observation_space=experience.spaces[0], action_space=experience.spaces[1])
    made.offline_data(
        input_=[str(path) for path in experience.logged.files],  # pyright: ignore[reportArgumentType]
        offline_data_class=LoggedColumns,
        dataset_num_iters_per_learner=settings.updates_per_iteration,
        materialize_data=False,
    )


def fit_runners(
    config: RLlibConfig, notify: Callable[[str], None], nodes: Sequence[Mapping[str, float]] | None = None
) -> int:
    """Actors that the cluster has room for, at most as many as the config asks for; RLlib would wait for others for ever.

    Nothing is changed on a cluster without a CPU, since that is one that scales up on demand. `nodes` are the resources of
    each node, by default those of the cluster that this process has joined.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]] if nodes is None else nodes
    wanted, cpus = config.num_env_runners, sum(node.get("CPU", 0.0) for node in nodes)
    if config.offline or not wanted or not cpus:
        return wanted if not config.offline else 0
    room = sum(math.floor((node.get("CPU", 0.0) + 1e-9) / config.num_cpus_per_env_runner) for node in nodes)
    if room < wanted:
        notify(f"the cluster has {cpus:g} CPUs: {room} of {wanted} environment runners start")
    return min(wanted, room)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No deprecation notes of Ray's own parts and no progress; errors are still shown, and settings come back afterwards."""
    from ray.data import DataContext

    context = DataContext.get_current()
    shown = {
        name: getattr(context, name) for name in ("enable_progress_bars", "enable_operator_progress_bars")
    }
    loggers = {
        name: logging.getLogger(name) for name in ("ray", "ray.rllib", "ray.tune", "ray.data", "ray._common")
    }
    levels = {name: logger.level for name, logger in loggers.items()}
    try:
        for name in shown:
            setattr(context, name, False)
        for logger in loggers.values():
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in shown.items():
            setattr(context, name, value)
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
