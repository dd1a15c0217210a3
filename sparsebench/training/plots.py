"""The pictures of one run: its curves, and the density of its layers over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsebench.files import write_atomically


def draw(
    folder: Path, rows: list[dict[str, Any]], densities: list[dict[str, Any]], title: str
) -> None:
    """Write ``curves.png`` and ``density.png``; without a finished epoch, nothing."""
    if not rows:
        return
    _save(_curves(rows, title), folder / "curves.png")
    _save(_density(densities, title), folder / "density.png")


def _figure(columns: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 3.2), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _curves(rows: list[dict[str, Any]], title: str) -> Any:
    panels = (
        ("loss", ("train/loss", "validation/loss")),
        ("accuracy", ("validation/accuracy",)),
        ("topology", ("sparsity", "itop_rate", "survived")),
    )
    figure, axes = _figure(len(panels))
    epochs = [row["epoch"] for row in rows]
    for axis, (name, keys) in zip(axes, panels, strict=True):
        for key in keys:
            if key in rows[0]:
                axis.plot(epochs, [row[key] for row in rows], label=key.replace("_", " "))
        axis.set(xlabel="epoch", title=name)
        if axis.lines:
            axis.legend(fontsize="small", frameon=False)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    return figure


def _density(densities: list[dict[str, Any]], title: str) -> Any:
    """Layers from top to bottom, epochs from left to right, the density as the colour."""
    names = [name for name in densities[0] if name != "epoch"]
    figure, (axis,) = _figure(1)
    figure.set_size_inches(6, 1.6 + 0.22 * len(names))
    values = [[row[name] for row in densities] for name in names]
    image = axis.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="none")
    axis.set_yticks(range(len(names)), names, fontsize="x-small")
    axis.set(xlabel="epoch", title=f"density by layer\n{title}")
    axis.title.set_fontsize("medium")
    figure.colorbar(image, ax=axis, label="density")
    return figure


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
