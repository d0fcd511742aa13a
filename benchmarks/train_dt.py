"""The Decision Transformer's training step, packed, against the same net padded and against d3rlpy's.

    python benchmarks/train_dt.py                                  one CPU thread
    PYTHON_WITH_D3RLPY benchmarks/train_dt.py                      d3rlpy (pip install d3rlpy) takes part where it is installed

A session is three tokens of width 64 through two blocks; 64 dense inputs, 4 pages, context 50. Days have floor(exp(0.9 + 0.9 z))
sessions, z normal, between 1 and 100: 3.3 on average, 41 % with one, 88 % with at most 6, 1 in 4,000 with more than 50, whose
rest the padded nets leave out. *Useful* are the tokens of real sessions. Every contender draws its own batches of as many days
and makes a step of Adam; they take turns within one run, in CPU seconds (wall seconds with synchronisation on a GPU). The
padded net is ours with the same weights, every layer over (B, 50), by `scaled_dot_product_attention(is_causal=True)`, whose
last block works on the tokens that are read only, as ours does. The matrix products are those of the packed step, without
attention, into ready memory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plpm_ray.core.features import FeatureSchema, FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.stats import TableStats
from plpm_ray.navigators.glan.decision_transformer import STATE, DecisionTransformer
from plpm_ray.training.comm import Comm
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.device import make_optimiser, take_step
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import Loop
from plpm_ray.training.table import TensorTable
from plpm_ray.training.trajectories import TrajectoryTable

N, D, K, CONTEXT = 64, 64, 4, 50
# one step of training; returns its useful sessions
Step = Callable[[], int]


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    table = sessions(args.days)
    print(f"{describe(device)}; torch {torch.__version__}, {args.threads} thread(s)")
    print(
        f"{args.days:,} days, {len(table['step']):,} sessions; the padded loss is ours to {check(table):.0e}"
    )
    print(
        f"{args.repeats} interleaved turns; median, and the ratios' range between the quartiles of the turns\n"
    )
    print("| days a step | contender | ms a step | useful tokens/s | packed is faster by |")
    print("|---|---|---|---|---|")
    for batch in args.batch:
        rates = interleaved(contenders(table, batch, device), args.turn_s, args.repeats, device)
        ours = rates["plpm_ray, packed"]
        for name, turns in rates.items():
            low, middle, high = statistics.quantiles(
                [o[0] / t[0] for o, t in zip(ours, turns, strict=True)], n=4
            )
            rate, step = (statistics.median(values) for values in zip(*turns, strict=True))
            print(
                f"| {batch} | {name} | {step * 1e3:.1f} | {rate:,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |",
                flush=True,
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--days", type=int, default=20_000)
    parser.add_argument("--turn-s", type=float, default=1.0, help="length of a turn, at least one step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
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


def contenders(table: dict[str, Tensor], batch: int, device: torch.device) -> dict[str, Step]:
    found = {
        "plpm_ray, packed": packed(table, batch, device),
        "its matrix products alone": products(table, batch, device),
        f"the same net, padded to {CONTEXT}": padded(table, batch, device),
        "the same net, padded to the batch's longest day": padded(table, batch, device, tight=True),
    }
    try:
        found[f"d3rlpy {importlib.metadata.version('d3rlpy')}"] = d3rlpy(table, batch, device)
    except ImportError:
        print("| | d3rlpy: not installed | | | |")
    return found


def interleaved(
    steps: dict[str, Step], turn_s: float, repeats: int, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    """(useful tokens a second, seconds a step) of every contender in every turn."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(-1, repeats):
        for name, step in steps.items():
            synchronise(device)
            started, useful, done = clock(), 0, 0
            while not done or clock() - started < turn_s:
                useful, done = useful + step(), done + 1
            synchronise(device)
            seconds = clock() - started
            if turn >= 0:
                rates[name].append((3 * useful / seconds, seconds / done))
    return rates


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def sessions(days: int) -> dict[str, Tensor]:
    """A table of the sessions of so many days."""
    rng, gen = np.random.default_rng(0), torch.Generator().manual_seed(1)
    lengths = np.clip(np.exp(0.9 + 0.9 * rng.standard_normal(days)), 1, 100).astype(np.int64)
    rows = int(lengths.sum())
    step = np.arange(rows) - np.repeat(lengths.cumsum() - lengths, lengths)
    return {
        "dense": torch.randn(rows, N, generator=gen),
        "cat": torch.empty(rows, 0, dtype=torch.int32),
        "action": torch.randint(K, (rows,), generator=gen, dtype=torch.int32),
        "step": torch.from_numpy(step).int(),
        "use_s": torch.rand(rows, generator=gen) * 600,
        "propensity": torch.full((rows,), 1 / K),
    }


def learner_of(table: dict[str, Tensor]) -> DecisionTransformer:
    names = tuple(f"page_{k}" for k in range(K))
    no_edges = tuple(np.empty(0, np.float32) for _ in range(N))
    spec = FeatureSpec(FeatureSchema(names), np.zeros(N, np.float32), np.ones(N, np.float32), no_edges, ())
    columns = {"landing": table["action"], "use_s": table["use_s"], "landing_dwell_s": table["use_s"]}
    columns |= {"hour": torch.zeros_like(table["step"]), "step": table["step"]}
    stats = TableStats.of(K, **{name: column.numpy() for name, column in columns.items()})
    stats.day_totals = TableStats.days(np.full(10, 3.3), np.full(10, 1000.0))
    config = {"reward": "duration", "width": D, "context": CONTEXT}
    learner = build_learner(
        DecisionTransformer,
        config,
        spec,
        PageCatalogue(pages=names),
        stats,
        seed=0,  # type: ignore[arg-type]
    )
    assert isinstance(learner, DecisionTransformer)
    return learner


def packed(table: dict[str, Tensor], batch: int, device: torch.device) -> Step:
    """The loop's own step on batches of the loop's own table."""
    source = TrajectoryTable.of(TensorTable(table)).to(device)
    config = TrainingConfig(
        batch_size=batch, device=device.type, grad_clip=None, log_every=10**9, lr_schedule="constant"
    )
    loop = Loop(learner_of(table), source, None, config, Comm())
    used: list[int] = []
    update = loop._update

    def counted(rows: dict[str, Tensor]) -> None:
        used.append(len(rows["step"]))
        update(rows)

    loop._update = counted  # type: ignore[method-assign]

    def endless() -> Iterator[None]:
        while True:
            loop.step = 0
            yield from loop.epoch_steps()
            loop.epoch += 1

    steps = endless()

    def run() -> int:
        next(steps)
        return used.pop()

    return run


def products(table: dict[str, Tensor], batch: int, device: torch.device) -> Step:
    """The matrix products of a packed step of the mean size: forward, and both of backward."""
    rows = round(batch * len(table["step"]) / int((table["step"] == 0).sum()))
    block = [(D, D), (D, 32), (D, D), (D, 4 * D), (4 * D, D)]
    shapes = [(3 * rows, *shape) for shape in block] + [(3 * rows, D, 32)]
    shapes += [(rows, *shape) for shape in (*block[:1], *block[2:], (N, D), (D, D))]
    made = [[torch.randn(*s, device=device) for s in ((n, i), (i, o), (n, o))] for n, i, o in shapes]

    def run() -> int:
        for x, w, y in made:
            torch.mm(x, w, out=y)
            torch.mm(y, w.t(), out=x)
            torch.mm(x.t(), y, out=w)
            w.fill_(0.01)
        return rows

    return run


def padded_loss(
    learner: DecisionTransformer, batch: dict[str, Tensor], rows_BT: Tensor, real_BT: Tensor
) -> Tensor:
    """Our loss of padded days; pads come last, so that a causal attention needs no other mask."""
    rtg = learner.rtg_of(batch)
    columns = [c[rows_BT.flatten()] for c in (rtg, *(batch[n] for n in ("dense", "cat", "step", "action")))]
    x = learner.tokens(*columns).view(len(rows_BT), -1, D)
    *first, last = learner.transformer._layers
    for block in (*first, last):
        normed = block.norm(x)
        q = block.query(normed).unflatten(2, (block.heads, -1)).transpose(1, 2)
        k, v = (kv.unsqueeze(1).expand_as(q) for kv in block.key_value(normed).chunk(2, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        if block is last:
            x, mixed = x[:, STATE::3], mixed[:, STATE::3]
        x = x + block.out(mixed)
        x = x + block.feed_forward(x)
    logits = learner.head(learner.transformer.norm(x))
    return F.cross_entropy(logits[real_BT], batch["action"][rows_BT[real_BT]])


def padded(table: dict[str, Tensor], batch: int, device: torch.device, *, tight: bool = False) -> Step:
    """The same net on (B, 50) sessions, or (B, T) with T the longest day of the batch."""
    source, learner = TrajectoryTable.of(TensorTable(table)).to(device), learner_of(table).to(device)
    optimiser = make_optimiser(learner, TrainingConfig())

    def endless() -> Iterator[dict[str, Tensor]]:
        epoch = 0
        while True:
            yield from source.batches(epoch, 0, batch, source.rows // batch)
            epoch += 1

    batches = endless()

    def run() -> int:
        rows = next(batches)
        rows_BT, real_BT = grid(rows["step"], tight)
        take_step(optimiser, padded_loss(learner, rows, rows_BT, real_BT), None)
        return int(real_BT.sum())

    return run


def grid(step_S: Tensor, tight: bool) -> tuple[Tensor, Tensor]:
    """(B, T) sessions of each day, and which of them are real."""
    first = torch.nonzero(step_S == 0)
    length = torch.diff(first.squeeze(1), append=first.new_tensor([len(step_S)])).unsqueeze(1)
    step = torch.arange(min(int(length.max()), CONTEXT) if tight else CONTEXT, device=step_S.device)
    return first + torch.minimum(step, length - 1), step < length


def check(table: dict[str, Tensor]) -> float:
    """How far the padded loss is from ours on days that fit into the context."""
    source, learner = TrajectoryTable.of(TensorTable(table)), learner_of(table)
    fitting = torch.nonzero(source.trajectories.columns["length"] <= CONTEXT).squeeze(1)[:256]
    batch = source.gather(fitting)
    with torch.no_grad():
        gap = padded_loss(learner, batch, *grid(batch["step"], False)) - learner.losses(batch)["loss"]
    return abs(gap.item())


def d3rlpy(table: dict[str, Tensor], batch: int, device: torch.device) -> Step:
    """Its discrete Decision Transformer of the same width, depth and context, on its own replay buffer."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    from d3rlpy.algos import DiscreteDecisionTransformerConfig
    from d3rlpy.dataset import MDPDataset
    from d3rlpy.models import VectorEncoderFactory

    ends = torch.cat([table["step"][1:] == 0, torch.tensor([True])])
    action, reward = table["action"].numpy()[:, None], table["use_s"].numpy()[:, None] / 1000
    data = MDPDataset(table["dense"].numpy(), action, reward, ends.float().numpy())
    algo = DiscreteDecisionTransformerConfig(
        batch_size=batch,
        encoder_factory=VectorEncoderFactory([64, D]),
        num_heads=4,
        num_layers=2,
        context_size=CONTEXT,
        max_timestep=101,
        attn_dropout=0.0,
        resid_dropout=0.0,
        embed_dropout=0.0,
        activation_type="relu",
    ).create(device=str(device))
    algo.build_with_dataset(data)

    def run() -> int:
        rows = data.sample_trajectory_batch(batch, length=CONTEXT)
        algo.update(rows)
        return int(rows.masks.sum())

    return run


if __name__ == "__main__":
    main()
