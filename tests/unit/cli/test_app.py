"""The command line as such: help of every command, exit status, and the environment it sets for Ray."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plpm_ray.cli import app as cli
from plpm_ray.cli import commands, simulate
from plpm_ray.core.errors import ConfigError, DataError
from tests.command_line import plpm

COMMANDS = [
    "data",
    "train",
    "stream",
    "sweep",
    "evaluate",
    "assess",
    "uplift",
    "decide",
    "score",
    "reward",
    "serve",
    "report",
    "doctor",
    "quickstart",
]
SIMULATE = ["ab", "aa", "calibrate", "coverage", "uplift", "rllib", "logs"]
_OWN_OPTION = {"quickstart": "--folder", "report": "--output"}


def test_the_commands_are_those_of_the_readme() -> None:
    listed = [c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback]
    assert listed == COMMANDS
    assert [c.callback.__name__ for c in simulate.app.registered_commands if c.callback] == SIMULATE


@pytest.mark.parametrize("command", [*COMMANDS, *(f"simulate {name}" for name in SIMULATE)])
def test_every_command_explains_itself(command) -> None:
    result = CliRunner().invoke(
        cli.app, [*command.split(), "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"}
    )
    assert result.exit_code == 0 and "Usage:" in result.output
    assert _OWN_OPTION.get(command, "--set") in result.output


def test_help_loads_neither_ray_nor_torch() -> None:
    import subprocess
    import sys

    code = "import sys; sys.argv = ['plpm', 'train', '--help']\nfrom plpm_ray.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(sorted({'ray', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_no_command_and_a_wrong_one_end_with_usage() -> None:
    assert "Usage:" in plpm().out + plpm().err
    ended = plpm("trian")
    assert ended.code == 2 and "trian" in ended.err
    ended = plpm("train")
    assert ended.code == 2 and "CONFIG" in ended.err


def test_errors_raised_on_purpose_are_shown_without_a_traceback(monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise DataError("part-3.parquet is damaged", hint="copy it again")

    monkeypatch.setattr(commands, "data", fail)
    ended = plpm("data", "x.yaml")
    assert ended == (2, "", "error: part-3.parquet is damaged\n  hint: copy it again\n")


def test_an_interrupt_ends_with_its_usual_status(monkeypatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train", interrupt)
    ended = plpm("train", "x.yaml")
    assert ended.code == 130 and "Traceback" not in ended.err


def test_other_errors_keep_their_traceback(monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(commands, "train", fail)
    with pytest.raises(ZeroDivisionError):
        plpm("train", "x.yaml")


def test_a_config_of_ray_serve_is_told_apart(tmp_path) -> None:
    config = Path(__file__).resolve().parents[3] / "serve" / "iit.yaml"
    with pytest.raises(ConfigError, match="config of Ray Serve") as error:
        commands.serve(config, [])
    assert "serve deploy" in str(error.value.hint)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable of Ray's set, and no cluster of this machine in sight."""
    for name in [*os.environ]:
        if name.startswith(("RAY_", "MLFLOW_", "DO_NOT_TRACK")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    yield monkeypatch
    for name in {*os.environ} - before.keys():
        del os.environ[name]


def test_usage_statistics_are_off_and_a_local_ray_gets_a_token_of_its_own(environment) -> None:
    cli.quiet_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_what_is_set_already_stays(environment) -> None:
    environment.setenv("RAY_USAGE_STATS_ENABLED", "1")
    environment.setenv("RAY_AUTH_TOKEN_PATH", "/secret")
    cli.quiet_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_MODE" not in os.environ


def test_a_cluster_that_is_joined_keeps_its_own_rules(environment, tmp_path) -> None:
    environment.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    cli.quiet_environment()
    assert "RAY_AUTH_MODE" not in os.environ
    environment.delenv("RAY_ADDRESS")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").touch()
    cli.quiet_environment()
    assert "RAY_AUTH_MODE" not in os.environ
