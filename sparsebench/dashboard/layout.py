"""The dashboard of a W&B project: which panels, of which metrics, in which sections.

Only the spec is built here; W&B's own library turns it into a workspace.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

#: Title, x and y of the curves, from the rows that a run logs at each epoch.
CURVES = (
    ("Validation accuracy", "epoch", "validation/accuracy"),
    ("Validation accuracy by training FLOPs", "flops/training_relative", "validation/accuracy"),
    ("Validation loss", "epoch", "validation/loss"),
    ("Training loss", "epoch", "train/loss"),
)
TOPOLOGY = (
    ("Sparsity", "epoch", "sparsity"),
    ("Share of weights ever present", "epoch", "itop_rate"),
    ("Share of the first weights still present", "epoch", "survived"),
    ("Dead units", "epoch", "dead_units"),
)
#: Title, x and y of the points, from the summary: the metrics of ``result.json``.
TRADES = (
    ("Test accuracy against sparsity", "sparsity", "test/accuracy"),
    ("Test accuracy against training FLOPs", "flops/training_relative", "test/accuracy"),
    ("Test accuracy against inference FLOPs", "flops/inference_relative", "test/accuracy"),
    ("Test accuracy against non-zeros", "nonzeros", "test/accuracy"),
)
BARS = (
    ("Seconds of training", "seconds/training"),
    ("Seconds of mask updates", "seconds/mask_updates"),
    ("Seconds of the whole run", "seconds/fit"),
    ("Peak memory (bytes)", "memory/peak_bytes"),
)
#: All layers in one panel, whatever a network calls them.
DENSITY = "density/.*"


def workspace(entity: str, project: str, table: str | None = None) -> Workspace:
    """The dashboard; runs that differ in their seed only are one line, by method.

    Args:
        entity: user or team.
        project: the W&B project.
        table: shows only the runs of this table, which are a W&B group.
    """
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sparsebench: {table}" if table else "sparsebench",
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == table] if table else [],
            groupby=[expr.Config("method.name"), expr.Config("cell")],
        ),
    )


def spec(built: Workspace) -> dict[str, Any]:
    """What W&B is sent for a workspace, as plain data; nothing is sent."""
    # the library has no public way to look at it
    view = built._to_model()
    found: dict[str, Any] = view.spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    return {"entity": view.entity, "project": view.project, "name": view.display_name, **found}


def _sections() -> list[Section]:
    import wandb_workspaces.workspaces as ws

    wr = _panels()
    density = wr.LinePlot(title="Density by layer", x="epoch", metric_regex=DENSITY, y=[])
    return [
        ws.Section(name="Curves by method", is_open=True, panels=_curves(CURVES)),
        ws.Section(
            name="Accuracy against cost",
            is_open=True,
            panels=[
                wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))
                for title, x, y in TRADES
            ],
        ),
        ws.Section(name="Topology", is_open=True, panels=[density, *_curves(TOPOLOGY)]),
        ws.Section(
            name="Time and memory",
            panels=[wr.BarPlot(title=title, metrics=[name]) for title, name in BARS],
        ),
    ]


def _curves(panels: tuple[tuple[str, str, str], ...]) -> list[Any]:
    wr = _panels()
    return [
        wr.LinePlot(title=title, x=x, y=[y], groupby_aggfunc="mean", groupby_rangefunc="stddev")
        for title, x, y in panels
    ]


def _panels() -> Any:
    """The module of panels; its names are there at run time only."""
    return import_module("wandb_workspaces.reports.v2")
