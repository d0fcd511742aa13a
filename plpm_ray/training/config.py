"""How a learner is trained; what it is stands in the learner's own config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from plpm_ray.core.config import StrictConfig, Tunable

Tracker = Literal["tensorboard", "mlflow"]

# These change where and how safely a run runs, not what it computes: it may be resumed under other values of them.
OPERATIONAL = ("max_failures", "keep_checkpoints", "trackers", "cpus_per_worker", "log_every")


class InputConfig(StrictConfig):
    """How the table reaches the loop."""

    mode: Literal["memory", "stream"] = Field(
        "memory",
        description="memory: the encoded table is kept; stream: it is read anew each epoch, a window of rows at a time",
    )
    window_rows: int = Field(
        2_000_000,
        ge=1,
        description="rows shuffled together in stream mode, and the largest piece that is read at once (two are held)",
    )


class TrainingConfig(StrictConfig):
    """The optimisation, its hardware, and what is written on the way."""

    epochs: int = Field(10, ge=1, description="passes over the training rows")
    batch_size: int = Field(
        4096, ge=1, description="rows per optimiser step, all workers together; of trajectories, whole days"
    )
    lr: Annotated[float, Tunable(1e-4, 1e-2, log=True)] = Field(
        1e-3, gt=0, description="learning rate of Adam"
    )
    lr_schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="cosine: lr falls to 0 over all epochs, so that the noise of the last batches averages out",
    )
    weight_decay: Annotated[float, Tunable(1e-6, 1e-2, log=True)] = Field(
        0.0, ge=0, description="decoupled weight decay (AdamW); 0 is plain Adam"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decay rates of Adam's first and second moments"
    )
    grad_clip: float | None = Field(
        10.0, gt=0, description="largest norm of the gradient; null does not clip"
    )
    seed: int = Field(0, ge=0, description="seed of weights, shuffling and dropout")

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one, else cpu"
    )
    amp: Literal["none", "bf16"] = Field(
        "none", description="bf16: forward pass in bfloat16 where that is safe"
    )
    torch_compile: bool = Field(
        False, description="compile the forward and backward pass; pays off in long runs only"
    )
    cuda_graph: bool = Field(
        False,
        description="replay the step as one CUDA graph; several times faster for small nets on a GPU, one process per run",
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads of each training process; null leaves PyTorch's choice"
    )
    data: InputConfig = Field(
        default_factory=lambda: InputConfig.model_validate({}), description="how the table reaches the loop"
    )

    workers: int | tuple[int, int] = Field(
        0,
        description="0: this process, without Ray; n: so many Ray Train workers; [min, max]: elastic, as there is room",
    )
    cpus_per_worker: float = Field(
        1.0, gt=0, description="CPUs reserved by each Ray worker; may be a fraction"
    )
    gpus_per_worker: Literal["auto"] | float = Field(
        "auto",
        description="GPUs reserved by each Ray worker; auto: 1 where the cluster has that many and device allows it",
    )
    max_failures: int = Field(
        3, ge=-1, description="how often a lost Ray worker restarts the group; -1 for any number of times"
    )

    checkpoint_every_epochs: int = Field(
        1, ge=1, description="epochs between checkpoints; the end of the run is always one"
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="also a checkpoint after so many steps of an epoch; null: not"
    )
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept, the newest ones")
    log_every: int = Field(100, ge=1, description="steps between loss records of the trackers")
    eval_every: int = Field(
        1, ge=1, description="epochs between evaluations on the validation rows; the last epoch always is one"
    )
    monitor: str = Field("loss", description="validation metric that is to fall, for patience")
    patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without a new best before the run stops and keeps the best weights; null: never",
    )
    trackers: tuple[Tracker, ...] = Field(
        (), description="trackers beside metrics.jsonl, which is always written"
    )

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = (value, value) if isinstance(value, int) else value
        if low < 0 or high < low or (not isinstance(value, int) and low < 1):
            raise ValueError("workers must be 0 or more, or a pair [min, max] with 1 <= min <= max")
        return value

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus(cls, value: Any) -> Any:
        if value != "auto" and value < 0:
            raise ValueError("gpus_per_worker must not be negative")
        return value

    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON-like values: all fields but the operational ones."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in OPERATIONAL}
