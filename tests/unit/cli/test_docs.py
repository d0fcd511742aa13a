"""The templates and the commands in the documentation are what the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plpm_ray.cli.doctor import command_of, validated
from plpm_ray.core.config import read_config

REPO = Path(__file__).resolve().parents[3]
TEMPLATES = sorted(
    str(path.relative_to(REPO))
    for folder in ("jobs", "tune", "serve", "tests/e2e")
    for path in (REPO / folder).glob("*.yaml")
    if "applications" not in path.read_text()
)


def documented() -> list[str]:
    """Every `plpm` command of the README and of docs/ that names a config of this checkout."""
    found = []
    for path in (REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))):
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if "plpm" in line else []
                at = next((i for i, word in enumerate(words) if re.fullmatch(r"(.*/)?plpm", word)), None)
                if at is not None and len(words) > at + 2 and (REPO / words[at + 2]).is_file():
                    found.append(shlex.join(words[at + 1 :]))
    return list(dict.fromkeys(found))


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


def test_your_logs_shows_every_step() -> None:
    text = (REPO / "docs" / "your_logs.md").read_text(encoding="utf-8")
    shown = re.findall(r"^plpm (\w+)", text, flags=re.MULTILINE)
    assert list(dict.fromkeys(shown)) == ["data", "train", "evaluate", "sweep", "decide", "serve"]


def test_the_learner_in_the_documentation_is_the_one_that_is_tested() -> None:
    text = (REPO / "docs" / "new_learner.md").read_text(encoding="utf-8")
    code, config = (re.search(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None and code.group(1) in (REPO / "tests" / "e2e" / "toy_learner.py").read_text()
    assert config is not None and config.group(1) in (REPO / "tests" / "e2e" / "toy_learner.yaml").read_text()
