"""KLAN-IIT's training step, input pipeline included, against the matrix products alone and against torchrl's discrete CQL.

    python benchmarks/train_iit.py                    one CPU thread
    python benchmarks/train_iit.py --device cuda      needs neither Ray nor a cluster

The net is 64 dense inputs -> 256 -> 256 -> 4 pages. Every contender draws shuffled batches from the same 200,000 rows (the
products excepted, which have no input), does Adam and a soft target update, and all take turns within one run. CPU seconds
on a CPU, wall seconds with synchronisation on a GPU.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from plpm_ray.core.features import FeatureSchema, FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.klan.iit import IIT
from plpm_ray.training.comm import Comm
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import Loop
from plpm_ray.training.table import TensorTable

N, H, K = 64, 256, 4
Steps = Callable[[int], None]


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{describe(device)}; torch {torch.__version__}, {args.threads} thread(s)")
    print(f"{args.rows:,} rows, {N} -> {H} -> {H} -> {K}, median of {args.repeats} interleaved turns\n")
    print("| batch | contender | ms a step | samples/s | x products |")
    print("|---|---|---|---|---|")
    for batch in args.batch:
        times = interleaved(
            contenders(batch, device, args), args.steps or max(5, 80_000 // batch), args.repeats, device
        )
        floor = times["matrix products alone"]
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, floor, strict=True))
            step = statistics.median(seconds)
            print(f"| {batch} | {name} | {step * 1e3:.2f} | {batch / step:,.0f} | {ratio:.2f} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 1024])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=None, help="steps per turn")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="add our step under torch.compile")
    return parser.parse_args()


def describe(device: torch.device) -> str:
    """Name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def contenders(batch: int, device: torch.device, args: argparse.Namespace) -> dict[str, Steps]:
    found = {
        "matrix products alone": products(batch, device),
        "plpm_ray, no session ends a day": ours(batch, device, args.rows, done=0.0),
        "plpm_ray, every second one does": ours(batch, device, args.rows, done=0.5),
    }
    if device.type == "cuda":
        found["plpm_ray, as a CUDA graph"] = ours(batch, device, args.rows, done=0.0, cuda_graph=True)
    if args.compile:
        found["plpm_ray, torch.compile"] = ours(batch, device, args.rows, done=0.0, torch_compile=True)
    try:
        found["torchrl DiscreteCQLLoss"] = torchrl(batch, device, args.rows)
    except ImportError as error:
        print(f"(torchrl is left out: {error})")
    return found


def interleaved(
    steps: dict[str, Steps], n: int, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of every contender in every turn."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-1, repeats):
        for name, run in steps.items():
            synchronise(device)
            started = clock()
            run(n)
            synchronise(device)
            if turn >= 0:
                times[name].append((clock() - started) / n)
    return times


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def products(batch: int, device: torch.device) -> Steps:
    """The matrix products of a step into ready memory: both networks forward, one backward."""
    x, g = torch.randn(batch, N, device=device), torch.randn(batch, K, device=device)
    w = [torch.randn(a, b, device=device) * 0.05 for a, b in ((N, H), (H, H), (H, K))]
    h1, h2, g1, g2 = (torch.empty(batch, H, device=device) for _ in range(4))
    q = torch.empty(batch, K, device=device)
    dw = [torch.empty_like(v) for v in w]

    def run(n: int) -> None:
        for _ in range(n):
            for _network in range(2):
                torch.mm(x, w[0], out=h1)
                torch.mm(h1, w[1], out=h2)
                torch.mm(h2, w[2], out=q)
            torch.mm(h2.T, g, out=dw[2])
            torch.mm(g, w[2].T, out=g2)
            torch.mm(h1.T, g2, out=dw[1])
            torch.mm(g2, w[1].T, out=g1)
            torch.mm(x.T, g1, out=dw[0])

    return run


def columns(rows: int, done: float) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    return {
        "dense": torch.randn(rows, N, generator=gen),
        "cat": torch.empty(rows, 0, dtype=torch.int32),
        "action": torch.randint(K, (rows,), generator=gen, dtype=torch.int32),
        "use_s": torch.rand(rows, generator=gen) * 600,
        "done": (torch.rand(rows, generator=gen) < done).float(),
        "hour": torch.randint(24, (rows,), generator=gen, dtype=torch.int32),
        "step": torch.randint(6, (rows,), generator=gen, dtype=torch.int32),
    }


def ours(batch: int, device: torch.device, rows: int, done: float, **training: bool) -> Steps:
    """The loop's own step on batches of the loop's own table."""
    names = tuple(f"page_{k}" for k in range(K))
    pages = PageCatalogue(pages=names)  # type: ignore[arg-type]
    no_edges = tuple(np.empty(0, np.float32) for _ in range(N))
    spec = FeatureSpec(FeatureSchema(names), np.zeros(N, np.float32), np.ones(N, np.float32), no_edges, ())
    table = columns(rows, done)
    stats = TableStats.of(
        K,
        landing=table["action"].numpy(),
        use_s=table["use_s"].numpy(),
        landing_dwell_s=table["use_s"].numpy(),
        hour=table["hour"].numpy(),
        step=table["step"].numpy(),
    )
    learner = build_learner(IIT, {"hidden": [H, H]}, spec, pages, stats, seed=0)
    source = TensorTable(table, (torch.arange(rows) + 1) % rows).to(device)
    quiet = {"grad_clip": None, "log_every": 10**9, "lr_schedule": "constant"}
    config = TrainingConfig(batch_size=batch, device=device.type, **quiet, **training)
    loop = Loop(learner, source, None, config, Comm())

    def endless() -> Iterator[None]:
        while True:
            loop.step = 0
            yield from loop.epoch_steps()
            loop.epoch += 1

    steps = endless()

    def run(n: int) -> None:
        for _ in range(n):
            next(steps)

    return run


def torchrl(batch: int, device: torch.device, rows: int) -> Steps:
    """Discrete CQL of torchrl with its replay buffer, loss module and target updater."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.data import LazyTensorStorage, OneHot, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.modules import QValueActor
    from torchrl.objectives import DiscreteCQLLoss, SoftUpdate

    linear, relu = torch.nn.Linear, torch.nn.ReLU
    net = torch.nn.Sequential(linear(N, H), relu(), linear(H, H), relu(), linear(H, K)).to(device)
    actor = QValueActor(
        TensorDictModule(net, ["observation"], ["action_value"]), spec=OneHot(K, device=device)
    )
    loss = DiscreteCQLLoss(actor, loss_function="l2", delay_value=True, action_space="one-hot")
    loss.make_value_estimator(gamma=0.9)
    updater = SoftUpdate(loss, tau=0.005)
    optimiser = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=1e-3, fused=True)
    table = columns(rows, 0.0)
    ends = torch.zeros(rows, 1, dtype=torch.bool)
    following = {
        "observation": table["dense"].roll(-1, 0),
        "reward": table["use_s"][:, None] / 300,
        "done": ends,
        "terminated": ends,
    }
    action = torch.nn.functional.one_hot(table["action"].long(), K)
    data = TensorDict(
        {"observation": table["dense"], "action": action, "next": TensorDict(following, [rows])}, [rows]
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(rows, device=device), sampler=SamplerWithoutReplacement(), batch_size=batch
    )
    buffer.extend(data.to(device))

    def run(n: int) -> None:
        for _ in range(n):
            terms = loss(buffer.sample())
            optimiser.zero_grad(set_to_none=True)
            (terms["loss_qvalue"] + terms["loss_cql"]).backward()
            optimiser.step()
            updater.step()

    return run


if __name__ == "__main__":
    main()
