"""The project's own files: versions, pins, where Ray is imported, and the cluster description."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import plpm_ray

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "plpm_ray"

# Where Ray may be imported, inside functions too; the rest computes without it.
RAY_MODULES = (
    "data/ray_*.py",
    "training/trainer.py",
    "training/ray_*.py",
    "simulation/ray_*.py",
    "tuning/*",
    "serving/*",
    "cli/*",
)


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    groups = [project()["dependencies"], *project()["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def pins() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt holds exact pins only"
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_has_a_pin_within_its_bound() -> None:
    pinned = pins()
    for requirement in requirements():
        if canonicalize_name(requirement.name) == "plpm-ray":
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt has no pin for {requirement}"
        assert pinned[name] in requirement.specifier, f"{name}=={pinned[name]} is outside {requirement}"


def test_dependencies_state_lower_bounds_only() -> None:
    for requirement in requirements():
        assert requirement.url is None
        if canonicalize_name(requirement.name) != "plpm-ray":
            assert [clause.operator for clause in requirement.specifier] == [">="], str(requirement)


def test_constraints_name_each_package_once() -> None:
    names = re.findall(r"(?m)^([A-Za-z0-9_.\-]+)==", (REPO / "constraints.txt").read_text())
    canonical = [canonicalize_name(name) for name in names]
    assert len(canonical) == len(set(canonical))


def test_version_has_one_source() -> None:
    assert project()["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", plpm_ray.__version__)
    try:
        installed = metadata.version("plpm_ray")
    except metadata.PackageNotFoundError:
        pytest.skip("plpm_ray is not installed in this environment; `make test` installs it")
    assert installed == plpm_ray.__version__


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPO,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    return [path for name in listed.split("\0") if name and (path := REPO / name).is_file()]


def test_no_file_names_a_package_host_or_a_path_of_one_machine() -> None:
    hosts = [r"pypi[.]org", r"pythonhosted[.]org", r"npmjs[.](org|com)", r"deb[.]debian[.]org"]
    hosts += [r"download[.]pytorch[.]org", r"index[-]url", r"find[-]links", r"https?://[a-z0-9.-]+/simple\b"]
    machine = [r"(?<![\w./-])/(work|farm|root|Users)/", r"(?<![\w./-])/home/(?!ray\b|ubuntu\b)\w+/"]
    forbidden = re.compile("|".join(hosts + machine))
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if match := forbidden.search(line):
                found.append(f"{path.relative_to(REPO)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


def imported_names(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_ray_is_imported_only_by_its_wrappers() -> None:
    strays = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).as_posix()
        allowed = any(fnmatch(relative, pattern) for pattern in RAY_MODULES)
        if not allowed and "ray" in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            strays.append(relative)
    assert not strays, f"Ray is imported outside {', '.join(RAY_MODULES)}: {', '.join(strays)}"


def test_importing_the_package_loads_neither_ray_nor_torch() -> None:
    code = "import sys, plpm_ray, plpm_ray.core; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((REPO / "cluster.yaml").read_text())


def test_cluster_description_passes_the_launchers_schema(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    with pytest.raises(Exception, match="worker_groups"):
        validate_config(prepare_config({**cluster, "worker_groups": {}}))


def test_cluster_has_cpu_and_gpu_workers(cluster: dict[str, Any]) -> None:
    nodes = cluster["available_node_types"]
    workers = {name: node for name, node in nodes.items() if name != cluster["head_node_type"]}
    assert {bool(node["resources"].get("GPU")) for node in workers.values()} == {False, True}
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]


def test_cluster_asks_for_a_token_and_holds_none(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    path = next(option.split("=")[1] for option in options if "RAY_AUTH_TOKEN_PATH=" in option)
    assert str(Path(path).parent) in cluster["file_mounts"]
    text = (REPO / "cluster.yaml").read_text()
    assert not re.search(r"RAY_AUTH_TOKEN=|[0-9a-f]{32}|AKIA|secret", text, re.IGNORECASE)


def test_cluster_runs_the_pinned_ray(cluster: dict[str, Any]) -> None:
    nodes = cluster["available_node_types"].values()
    images = [node["docker"]["worker_image"] for node in nodes if "docker" in node]
    images.append(cluster["docker"]["image"])
    assert {image.split(":")[1].split("-")[0] for image in images} == {pins()["ray"]}
    assert any("-c" in command and "constraints.txt" in command for command in cluster["setup_commands"])
