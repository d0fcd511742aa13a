"""What the entry points in jobs/ and tune/ share: `[CONFIG] [key=value ...]`, then the command of that name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plpm_ray.core.config import read_config
from plpm_ray.core.errors import ConfigError

# Ray unpacks what `--working-dir` uploads under such a folder and removes it some time after the job.
UPLOAD = "working_dir_files"


def main(
    command: str, default: str | Path, preset: tuple[str, ...] = (), argv: list[str] | None = None
) -> None:
    """Runs a `plpm` command as a job.

    Args:
        command: "data", "train", "stream", "evaluate", "assess", "sweep", "score", "reward", "simulate logs" or "simulate ab".
        default: config used when none is named; `navigator=NAME` takes that of the navigator, which lies beside it.
        preset: overrides that stand before those given, such as `backend=ray`.
        argv: arguments without the program; default: those of this process.
    """
    parser = argparse.ArgumentParser(description=f"plpm {command} as a Ray job")
    parser.add_argument(
        "arguments", nargs="*", metavar="[CONFIG] key=value", help="config file, then overrides"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, as in `plpm`"
    )
    given = parser.parse_args(argv)
    configs = [a for a in given.arguments if "=" not in a]
    if len(configs) > 1:
        parser.error(f"one config, not {len(configs)}: {configs}")
    overrides = [*preset, *(a for a in given.arguments if "=" in a), *given.set]
    config = Path(configs[0]) if configs else default_config(Path(default), overrides)
    overrides = [o for o in overrides if configs or not o.startswith("navigator=")]
    try:
        refuse_lost_output(command, config, overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [
        "plpm",
        *command.split(),
        str(config),
        *(part for text in overrides for part in ("--set", text)),
    ]
    from plpm_ray.cli import main as plpm

    plpm()


def default_config(default: Path, overrides: list[str]) -> Path:
    """`navigator=klan` alone means the config of that navigator beside the default one, `train_klan.yaml` by `train.yaml`.

    Raises:
        SystemExit: there is no such config.
    """
    named = [o.partition("=")[2] for o in overrides if o.startswith("navigator=")]
    if not named:
        return default
    path = default.with_name(f"{default.stem}_{named[-1]}.yaml")
    if not path.is_file():
        known = sorted(
            p.stem.removeprefix(f"{default.stem}_") for p in default.parent.glob(f"{default.stem}_*.yaml")
        )
        print(
            f"error: no config {path} for navigator={named[-1]}; there are {', '.join(known)}",
            file=sys.stderr,
        )
        sys.exit(2)
    return path


def refuse_lost_output(command: str, config: Path, overrides: list[str]) -> None:
    """Refuses an output folder inside a job's upload, where it would be removed with it.

    Raises:
        ConfigError: it lies there.
    """
    here = Path.cwd()
    if UPLOAD not in here.parts or "runtime_resources" not in here.parts:
        return
    keys = {"data": "output", "score": "output", "simulate logs": "output", "reward": "tables"}
    key = keys.get(command, "run_root")
    value = str(read_config(config, overrides).data.get(key, "runs"))
    if not Path(value).expanduser().is_absolute():
        raise ConfigError(
            f"{key} {value!r} would lie in the upload of this job, which Ray removes",
            hint=f"give a folder that every node sees, as in {key}=/shared/{value}",
        )
