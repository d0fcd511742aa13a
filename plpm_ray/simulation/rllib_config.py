"""`plpm simulate rllib`: what RLlib trains, on the world (DQN, PPO) or on tables (BC, MARWIL)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plpm_ray.core.config import StrictConfig
from plpm_ray.data.split import SplitConfig

Width = Annotated[int, Field(ge=1)]

# These change where a run runs, not what it computes.
OPERATIONAL = ("name", "run_root", "num_cpus_per_env_runner")


class AlgorithmSettings(StrictConfig):
    """What all algorithms share."""

    hidden: tuple[Width, ...] = Field(
        default=(256, 256), min_length=1, description="width of each hidden layer"
    )
    lr: float = Field(default=5e-4, gt=0, description="learning rate of Adam")
    gamma: float = Field(default=0.9, ge=0, le=1, description="discount per session")
    grad_clip: float | None = Field(
        default=10.0, gt=0, description="largest norm of the gradient; null does not clip"
    )


class DQNSettings(AlgorithmSettings):
    """Double DQN with replay; neither duelling heads nor noisy layers."""

    name: Literal["dqn"]
    batch_size: int = Field(default=512, ge=1, description="transitions of an update")
    replay_ratio: float = Field(default=4.0, gt=0, description="transitions replayed for each one sampled")
    steps_per_iteration: int = Field(
        default=5000, ge=1, description="environment steps of an iteration, at least"
    )
    learning_starts: int = Field(default=5000, ge=0, description="environment steps before the first update")
    buffer_steps: int = Field(
        default=500_000,
        ge=1,
        description="environment steps kept for replay, about 1 KB each; RLlib's buffer gets slow once it is full",
    )
    epsilon_from: float = Field(
        default=1.0, ge=0, le=1, description="probability of a random page at the beginning"
    )
    epsilon_to: float = Field(default=0.1, ge=0, le=1, description="the same from `epsilon_steps` on")
    epsilon_steps: int = Field(default=50_000, ge=1, description="environment steps over which it falls")
    double_q: bool = Field(
        default=True, description="the main network picks the next page, the target network values it"
    )
    tau: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="share of a soft update of the target network, after each update",
    )
    loss: Literal["mse", "huber"] = Field(
        default="mse",
        description="mse learns means; huber is closer to medians, which a few long sessions move less",
    )


class PPOSettings(AlgorithmSettings):
    """Proximal policy optimisation with a clipped objective and a value network of its own."""

    name: Literal["ppo"]
    lr: float = Field(default=3e-4, gt=0, description="learning rate of Adam")
    batch_size: int = Field(default=8192, ge=1, description="environment steps of an iteration")
    minibatch_size: int = Field(default=1024, ge=1, description="of these, how many an update takes")
    epochs: int = Field(default=6, ge=1, description="passes over the steps of an iteration")
    clip: float = Field(default=0.2, gt=0, lt=1, description="clipping of the probability ratio")
    lambda_: float = Field(default=0.9, ge=0, le=1, description="lambda of the generalised advantages")
    entropy: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    vf_clip: float = Field(
        default=1000.0, gt=0, description="largest squared error of the value network that counts"
    )

    @model_validator(mode="after")
    def _minibatches(self) -> PPOSettings:
        if self.minibatch_size > self.batch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} is larger than batch_size {self.batch_size}"
            )
        return self


class OfflineSettings(AlgorithmSettings):
    """What the offline algorithms share."""

    lr: float = Field(default=1e-3, gt=0, description="learning rate of Adam")
    batch_size: int = Field(default=4096, ge=1, description="sessions of an update")
    updates_per_iteration: int = Field(default=50, ge=2, description="updates of an iteration")


class BCSettings(OfflineSettings):
    """Behaviour cloning of the logging policy."""

    name: Literal["bc"]


class MARWILSettings(OfflineSettings):
    """Behaviour cloning weighted by exp(beta x normed advantage); the return is that of the rest of the user's day."""

    name: Literal["marwil"]
    beta: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="strength of the weighting, per standard deviation of the logged returns",
    )
    vf_coeff: float = Field(default=1.0, ge=0, description="weight of the value network's loss")


Algorithm = Annotated[DQNSettings | PPOSettings | BCSettings | MARWILSettings, Field(discriminator="name")]


class EnvironmentSettings(StrictConfig):
    """The environment `plpm/LandingPage-v0`."""

    features: str | None = Field(
        default=None,
        description="bundle, run folder or warehouse whose encoder makes the observations; null fits one (online), "
        "or takes that of the training days (offline)",
    )
    horizon_days: int = Field(default=1, ge=1, description="days of an episode; 1 is the user-day")
    warmup_days: int = Field(default=14, ge=0, description="days under the logging policy before an episode")
    reward_scale_s: float | None = Field(
        default=None, gt=0, description="seconds that give a reward of 1; null: the mean session of the logs"
    )


class RLlibConfig(StrictConfig):
    """A run of one algorithm."""

    name: str = Field(
        default="rllib", min_length=1, description="run name; the run folder adds a hash of config and data"
    )
    run_root: str = Field(default="runs", description="folder that holds the run folders")
    algorithm: Algorithm = Field(
        description="dqn or ppo (on the world), bc or marwil (on tables), and its settings"
    )
    world: str | dict[str, Any] | None = Field(
        default=None,
        description="shipped world, path of a YAML file, or the world itself; with tables it only judges, and may be left out",
    )
    tables: str | None = Field(
        default=None, description="warehouse folder made by `plpm data`; for bc and marwil"
    )
    split: SplitConfig = Field(
        default=SplitConfig(), description="which days of the tables train; the others are left alone"
    )
    environment: EnvironmentSettings = Field(
        default=EnvironmentSettings(), description="observations and episodes"
    )
    iterations: int = Field(default=40, ge=1, description="training iterations")
    seed: int = Field(default=0, ge=0, description="seed of weights, users and exploration")
    num_env_runners: int = Field(
        default=0,
        ge=0,
        description="Ray actors that run environments, at most as many as the cluster has room; 0: this process",
    )
    envs_per_runner: int = Field(default=64, ge=1, description="users side by side in each of them")
    num_cpus_per_env_runner: float = Field(default=1.0, gt=0, description="CPUs reserved by each actor")
    evaluation_users: int = Field(
        default=10_000, ge=0, description="users on whom the result is judged in the world; 0: not"
    )
    evaluate_every: int = Field(
        default=0, ge=0, description="iterations between further evaluations on the way; 0: none"
    )

    @model_validator(mode="before")
    @classmethod
    def _world_called_null(cls, data: object) -> object:
        # YAML reads the bare word null, the name of a shipped world, as nothing at all
        if isinstance(data, dict) and "tables" not in data and "world" in data and data["world"] is None:
            data = {**data, "world": "null"}
        return data

    @model_validator(mode="after")
    def _data(self) -> RLlibConfig:
        if self.offline and self.tables is None:
            raise ValueError(f"{self.algorithm.name} learns from logs: give `tables`")
        if not self.offline and self.world is None:
            raise ValueError(f"{self.algorithm.name} learns in a world: give `world`")
        if not self.offline and self.tables is not None:
            raise ValueError(f"{self.algorithm.name} learns in a world, not from `tables`")
        return self

    @property
    def offline(self) -> bool:
        """Whether it learns from tables."""
        return self.algorithm.name in ("bc", "marwil")

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON-like values; the world and the data are added to it by their content."""
        return self.model_dump(mode="json", exclude={*OPERATIONAL, "world", "tables"})
