"""Data sets, loaded by name or import path, and loaders that resume bitwise."""

from sparsebench.data.augment import Recipe
from sparsebench.data.images import DataSets, Images, TensorImages
from sparsebench.data.load import load
from sparsebench.data.loader import EvalLoader, TrainLoader
from sparsebench.data.source import Source

__all__ = [
    "DataSets",
    "EvalLoader",
    "Images",
    "Recipe",
    "Source",
    "TensorImages",
    "TrainLoader",
    "load",
]
