"""These tests need a real SLURM and minutes: only `pytest tests/slurm` runs them."""

from pathlib import Path

import pytest
from slurm.cluster import Sweep, clear, home, start, table_of

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    """Whether nobody asked for this folder by name."""
    asked = [Path(word.partition("::")[0]).resolve() for word in config.args]
    return None if any(path.is_relative_to(HERE) for path in asked) else True


@pytest.fixture(scope="session", autouse=True)
def cluster():
    start()


@pytest.fixture(scope="session")
def serial(tmp_path_factory):
    """The table of a sweep in one process: what every sweep over SLURM has to end with."""
    place = home(tmp_path_factory.mktemp("serial"))
    alone = Sweep(place, ["hydra/launcher=basic"], {})
    assert alone.wait() == 0, alone.said()
    return table_of(place)


@pytest.fixture
def place(tmp_path):
    yield home(tmp_path)
    clear()
