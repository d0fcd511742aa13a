"""The templates and the commands in the documentation are what the command line takes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from plpm_ray.cli.doctor import command_of, validated
from plpm_ray.core.config import read_config
from plpm_ray.core.registry import lookup

REPO = Path(__file__).resolve().parents[3]
TEMPLATES = sorted(
    str(path.relative_to(REPO))
    for folder in ("jobs", "tune", "serve", "tests/e2e")
    for path in (REPO / folder).glob("*.yaml")
    if "applications" not in path.read_text()
)


DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def commands(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Command, config and overrides of every `plpm` command with a config in the fenced shell blocks of a document."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"\s*(\S*/)?plpm ", line) else []
            at = next((i for i, word in enumerate(words) if word.endswith(".yaml")), None)
            if at is not None:
                sets = [value for flag, value in pairwise(words) if flag == "--set"]
                yield " ".join(words[1:at]), words[at], sets


def documented() -> list[str]:
    """Every `plpm` command of the README and of docs/ that names a config of this checkout."""
    found = [
        shlex.join([*command.split(), config, *(word for text in sets for word in ("--set", text))])
        for document in DOCUMENTS
        for command, config, sets in commands(document.read_text(encoding="utf-8"))
        if " " not in command and (REPO / config).is_file()
    ]
    return list(dict.fromkeys(found))


def problems(text: str) -> list[str]:
    """What would stop somebody who runs the commands of a document in their order, from an empty folder.

    That is a config that is not there, and tables or runs that no earlier command makes.
    """
    made: set[str] = set()
    found = []
    for command, config, sets in commands(text):
        if config in made:  # the best of a sweep before
            made.add(config.replace("-*/best.yaml", "-best"))
            continue
        if not (REPO / config).is_file():
            found.append(f"plpm {command} {config}: there is no such config")
            continue
        source = read_config(config, sets)
        settings = validated(command, source)
        found += [f"plpm {command} {config}: no command makes {name}" for name in used(source.data) - made]
        made |= made_by(command, settings)
    return found


def used(data: Any) -> set[str]:
    """Tables and runs that a config reads: what lies in `warehouse/` and `runs/`, except what is written there."""
    if isinstance(data, dict):
        written = {"output", "run_root", "decision_log"}
        if data.get("refresh_s") is not None:
            written.add("parts")  # a service that watches them waits until they are there
        return set().union(*(used(value) for key, value in data.items() if key not in written))
    if isinstance(data, list):
        return set().union(*map(used, data))
    return {data} if isinstance(data, str) and data.startswith(("warehouse/", "runs/")) else set()


def made_by(command: str, settings: Any) -> set[str]:
    """Tables, and names of runs, that a command leaves."""
    if command in ("data", "score", "simulate logs"):
        return {settings.output}
    if command in ("reward", "decide", "serve", "doctor"):
        return set()
    made = {f"{settings.run_root}/{settings.name}"}
    if command == "sweep":
        made.add(f"{settings.run_root}/{settings.name}-*/best.yaml")
    if command == "train" and settings.navigator is not None:
        name = f"{settings.run_root}/{settings.parts_name or settings.name}"
        made |= {f"{name}-{role}" for role in lookup("navigator", settings.navigator.name).roles}
    return made


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_a_config_of_its_command(template: str) -> None:
    source = read_config(template)
    command = command_of(source.data)
    assert command is not None
    validated(command, source)
    assert re.search(rf"plpm {command} (--\S+ )*{re.escape(template)}", (REPO / template).read_text())


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_is_taken(line: str) -> None:
    command, config, *rest = shlex.split(line)
    known = "data train reward stream sweep evaluate assess decide score serve doctor"
    assert command in known.split()
    assert set(rest[::2]) <= {"--set"}
    source = read_config(config, rest[1::2])
    validated(command_of(source.data) or "" if command == "doctor" else command, source)


@pytest.mark.parametrize("name", ["README.md", "docs/glan.md", "docs/klan.md", "docs/your_logs.md"])
def test_the_commands_of_a_document_run_in_their_order(name: str) -> None:
    text = (REPO / name).read_text(encoding="utf-8")
    assert len(list(commands(text))) > 3
    assert not problems(text)


def test_a_document_that_does_not_is_found_out() -> None:
    text = """```bash
plpm data jobs/data_world.yaml                     # warehouse/world
plpm train jobs/train_lrtg.yaml --set name=mine
plpm sweep tune/glan_world.yaml --set bundle=runs/mine \\
    --set tables=warehouse/other
plpm train runs/glan_world-*/best.yaml
plpm serve serve/local_glan.yaml --set bundle=runs/glan_world-best
plpm serve serve/local_glan.yaml --set bundle=runs/glan
plpm train jobs/train_nothing.yaml
```"""
    assert problems(text) == [
        "plpm sweep tune/glan_world.yaml: no command makes warehouse/other",
        "plpm serve serve/local_glan.yaml: no command makes runs/glan",
        "plpm train jobs/train_nothing.yaml: there is no such config",
    ]


def test_every_entry_in_the_documentation_says_its_offset() -> None:
    asked = [
        body
        for document in DOCUMENTS
        for body in re.findall(
            r"curl \S*.*?-d '(.*?)'", document.read_text(encoding="utf-8"), flags=re.DOTALL
        )
    ]
    assert len(asked) > 3
    assert [body for body in asked if "utc_offset_min" not in json.loads(body)] == []


def test_your_logs_shows_every_step() -> None:
    text = (REPO / "docs" / "your_logs.md").read_text(encoding="utf-8")
    shown = re.findall(r"^plpm (\w+)", text, flags=re.MULTILINE)
    assert list(dict.fromkeys(shown)) == ["data", "train", "evaluate", "sweep", "decide", "serve"]


def test_the_learner_in_the_documentation_is_the_one_that_is_tested() -> None:
    text = (REPO / "docs" / "new_learner.md").read_text(encoding="utf-8")
    code, config = (re.search(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None and code.group(1) in (REPO / "tests" / "e2e" / "toy_learner.py").read_text()
    assert config is not None and config.group(1) in (REPO / "tests" / "e2e" / "toy_learner.yaml").read_text()
