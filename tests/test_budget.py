"""Training of equal FLOPs: epochs follow from a budget, and what was spent is within an epoch."""

import json
from pathlib import Path

import pytest

from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.run import run

WORDS = [
    "data=digits", "model=tiny_mlp", "data.subset=160", "batch_size=16", "plots=false",
    "quiet=true", "trainer.accelerator=cpu", "method.every=2it", "epochs=4",
]  # fmt: skip


@pytest.mark.parametrize("method", ["dense", "static", "rigl", "gmp", "snfs", "sr_ste", "topkast"])
@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_what_is_spent_is_the_budget_within_an_epoch(tmp_path, monkeypatch, method, budget):
    monkeypatch.chdir(tmp_path)
    if method == "dense":
        words = []
    else:
        words = [] if method == "sr_ste" else ["sparsity=0.8"]
    cfg = compose([*WORDS, *words, f"method={method}", f"training_flops={budget}"])
    result = run(cfg)
    spent, epochs = result["metrics"]["flops/training_relative"], result["metrics"]["epochs"]
    assert spent * epochs <= budget * 4 + 1e-9
    assert spent * (epochs + 1) > 0.9 * budget * 4  # GMP's next epoch would cost more than a mean
    assert result["config"]["epochs"] == 4  # what was asked for


@pytest.mark.parametrize(
    "words",
    [
        ["method=snip"], ["method=synflow"], ["method=snip_ratio"], ["method=phew"],
        ["method=rigl", "method.initial=saliency", "method.initial_scope=global"],
    ],
    ids=lambda words: words[0].removeprefix("method=") + f"{len(words)}",
)  # fmt: skip
def test_what_layers_win_before_training_is_paid_for(tmp_path, monkeypatch, words):
    """Their shares are no distribution's; a small CNN's FLOPs differ by a multiple from ERK's."""
    monkeypatch.chdir(tmp_path)
    small = ["model=tiny_conv", "sparsity=0.9", "training_flops=0.6"]
    result = run(compose([*WORDS, *small, *words]))
    metrics = result["metrics"]
    spent, epochs = metrics["flops/training_relative"], metrics["epochs"]
    assert spent * epochs <= 0.6 * 4 + 1e-9
    assert spent * (epochs + 1) > 0.6 * 4
    again = run(compose([*WORDS, *small[:2], *words, f"epochs={epochs}"]))["metrics"]
    for key in ("test/accuracy", "nonzeros", "flops/training_relative"):
        assert again[key] == metrics[key]  # looking ahead left no trace


def test_dense_training_has_its_own_length(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(compose([*WORDS, "method=dense", "training_flops=0.5"]))
    assert result["metrics"]["epochs"] == 2
    rows = Path(result["folder"]) if "folder" in result else next(Path("runs").iterdir())
    assert json.loads((rows / "result.json").read_text())["metrics"]["epochs"] == 2


def test_a_training_too_short_for_its_updates_is_no_end_of_the_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in WORDS if word != "method.every=2it"]
    cfg = compose([*words, "method=set", "sparsity=0.8", "method.every=20it", "training_flops=2.0"])
    epochs = run(cfg)["metrics"]["epochs"]  # 1 epoch has 9 steps
    assert epochs >= 0.9 * 2.0 * 4 / 0.2


def test_too_small_a_budget_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="training_flops=0.01: does not pay for one epoch"):
        run(compose([*WORDS, "method=dense", "training_flops=0.01"]))
    assert not Path("runs").exists()
