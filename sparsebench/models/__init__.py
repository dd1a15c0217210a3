"""The model zoo; importing it costs nothing, torch comes with the first model built."""

from sparsebench.models.factory import build
from sparsebench.models.matching import matched_width

__all__ = ["build", "matched_width"]
