"""What the entry points in jobs/ and tune/ share: `[CONFIG] [key=value ...]`, then the command of that name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(
    command: str, default: str | Path, preset: tuple[str, ...] = (), argv: list[str] | None = None
) -> None:
    """Runs a `plpm` command as a job.

    Args:
        command: "data", "train", "evaluate" or "sweep".
        default: config used when none is named.
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
    config = Path(configs[0]) if configs else Path(default)
    overrides = [*preset, *(a for a in given.arguments if "=" in a), *given.set]
    sys.argv = ["plpm", command, str(config), *(part for text in overrides for part in ("--set", text))]
    from plpm_ray.cli import main as plpm

    plpm()
