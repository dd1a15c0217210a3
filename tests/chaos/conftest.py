"""These tests take minutes: only `pytest tests/chaos` runs them."""

from pathlib import Path

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    """Whether nobody asked for this folder by name."""
    asked = [Path(word.partition("::")[0]).resolve() for word in config.args]
    return None if any(path.is_relative_to(HERE) for path in asked) else True
