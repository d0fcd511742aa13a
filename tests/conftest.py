"""Fixtures shared by all tests: one Ray cluster, the public data sets, a quiet environment."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

_ENVIRONMENT = pytest.MonkeyPatch()
_SCRATCH: list[Path] = []


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the environment before any test module is imported; child processes inherit it.

    One thread per process, no usage statistics, and a token of this session's own: otherwise Ray would
    write one into the home folder, and later clusters on this machine would ask for it.
    """
    scratch = Path(tempfile.mkdtemp(prefix="plpm-"))  # short: Ray's socket paths may have 107 bytes
    _SCRATCH.append(scratch)
    token = scratch / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        _ENVIRONMENT.delenv(name, raising=False)
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }.items():
        _ENVIRONMENT.setenv(name, value)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Put the environment back and remove the session's scratch folder."""
    _ENVIRONMENT.undo()
    while _SCRATCH:
        shutil.rmtree(_SCRATCH.pop(), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use, and run those with Ray last."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "ray_session" in fixtures:
            item.add_marker("ray")
        if "data_root" in fixtures:
            item.add_marker("realdata")
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray cluster of two CPUs on this machine, started once and shared by all tests that need Ray."""
    import ray

    if ray.is_initialized():
        raise RuntimeError("a test started Ray by itself before `ray_session`; let it use the fixture")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(_SCRATCH[0] / "ray"),
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the public data sets: PLPM_DATA, by default `../shared/data` beside the checkout."""
    root = Path(os.environ.get("PLPM_DATA") or REPO.parent / "shared" / "data").expanduser().resolve()
    if not root.is_dir():
        pytest.skip(f"the folder with the public data sets is missing: {root} (set PLPM_DATA)")
    return root


@pytest.fixture(scope="session")
def data_folder(data_root: Path) -> Callable[[str], Path]:
    """`data_folder("msnbc")` gives that folder or file, or skips the test, naming what is missing."""

    def find(relative: str) -> Path:
        path = data_root / relative
        if not path.exists():
            pytest.skip(f"this data set is missing: {path}")
        return path

    return find
