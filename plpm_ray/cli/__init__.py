"""The `plpm` command: data, train, sweep, evaluate, decide, score, serve, doctor, quickstart."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from plpm_ray.cli.app import run

    run()
