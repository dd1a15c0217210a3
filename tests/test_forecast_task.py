"""Forecasting from sensors: one mask for all times, exact counts, DynST by hand, a known truth."""

import pytest
import torch

from sparsebench.config.compose import compose
from sparsebench.data import advection
from sparsebench.data.options import Options
from sparsebench.errors import UserError
from sparsebench.models.forecaster import forecaster
from sparsebench.run import run
from sparsebench.sparsity import MethodSpec, SelectorSpec, Session, registry
from sparsebench.sparsity.build import build
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.kind import kind_of
from sparsebench.sparsity.sensors import Sensors, influence, signal
from sparsebench.tasks.build import build_method
from sparsebench.tasks.forecast import overlap

WIND = {"args": {"height": 6, "width": 8, "rows": 2, "columns": 2, "train": 40, "test": 10}}
SENSORS = SelectorSpec(kinds=["sensor"])
QUICK = [
    "task=forecast", "data.args.height=8", "data.args.width=8", "data.args.rows=3",
    "data.args.columns=2", "data.args.horizon=3", "data.args.window=2", "data.args.train=900",
    "data.args.test=200", "model.hidden=[32]", "optimizer=adam", "optimizer.lr=0.005",
    "optimizer.weight_decay=0", "batch_size=50", "plots=false", "quiet=true",
    "trainer.accelerator=cpu",
]  # fmt: skip


def train(folder, *words):
    result = run(compose([*QUICK, f"runs={folder}", *words]))
    assert result["status"] == "finished", result.get("error")
    return result["metrics"]


def session_of(model, *words, steps, sparsity=0.75):
    cfg = compose(["task=forecast", f"sparsity={sparsity}", *words])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, Session(
        build_method(cfg), model, optimizer, total_steps=steps, seed=0, selector=SENSORS
    )


# --- the data ------------------------------------------------------------------------------------


def test_the_target_is_the_air_that_was_upstream():
    quiet = {"args": {**WIND["args"], "noise": 0.0, "window": 3, "horizon": 2}}
    field = advection.advection(quiet)
    assert field.x.shape == (40 + 2 + 10, 3, 6, 8)
    truth = field.y.view(-1, 2, 2)
    for back in range(3):
        for column in (6, 7):
            source = column - (2 + back)
            seen = field.x[:, 2 - back, 2:4, source]
            assert torch.equal(seen, truth[:, :, column - 6])
    assert field.informative.nonzero().tolist() == [[r, c] for r in (2, 3) for c in range(2, 6)]


def test_a_fast_wind_carries_further():
    field = advection.advection({"args": {**WIND["args"], "speed": 2, "window": 1, "horizon": 3}})
    assert field.informative.nonzero()[:, 1].unique().tolist() == [0, 1]


def test_training_validation_and_test_share_no_measurement():
    field = advection.advection(WIND)
    sets = advection.split(field, Options(name="advection", validation=0.25))
    parts = [sets.train, sets.validation, sets.test]
    assert [len(part) for part in parts] == [40 - 10 - 3, 10, 10]
    values = [set(part.tensors[0].flatten().tolist()) for part in parts]
    assert sum(map(len, values)) == len(set.union(*values))
    assert values[2] == set(field.x[-10:].flatten().tolist())


@pytest.mark.parametrize(
    "words, said",
    [
        ([*QUICK, "data.args.rows=9"], "data.args.rows=9: the field has 8"),
        ([*QUICK, "data.args.horizon=8"], "data.args.horizon=8: no air of the target"),
        ([*QUICK, "+data.args.winds=3"], "did you mean 'window'|no such option"),
        ([*QUICK, "data.validation=899"], "data.validation=899.0: of 900 windows"),
        ([*QUICK, "data.subset=0.5"], "data.subset=0.5: windows in time have no subset"),
        (["task=forecast", "data=digits"], "task=forecast needs a field"),
        (["data=advection", "model=forecaster"], "a builder returns"),
    ],
)
def test_what_can_not_work_is_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        run(compose([*words, f"runs={tmp_path}", "method=static", "sparsity=0.5"]))
    assert not list(tmp_path.iterdir())


# --- one mask for all times ----------------------------------------------------------------------


def test_an_absent_sensor_has_no_influence_at_any_time():
    torch.manual_seed(0)
    model = forecaster((3, 4, 5), 2, hidden=(7,))
    _, session = session_of(model, "method=static", steps=4)
    kept = session.masks["sensors.weight"]
    assert int(kept.sum()) == 5
    x = torch.randn(6, 3, 4, 5, requires_grad=True)
    model(x).sum().backward()
    touched = x.grad.abs().sum(0) > 0
    assert torch.equal(touched, kept.expand(3, -1, -1))
    with torch.no_grad():
        assert torch.equal(model(x), model(torch.where(kept, x, 1e6 * torch.randn_like(x))))


def test_the_number_of_sensors_is_that_of_the_cubic_schedule_at_each_step():
    torch.manual_seed(0)
    model = forecaster((2, 8, 8), 3, hidden=())
    words = ("method=dynst", "method.every=2it", "method.end=20it")
    optimizer, session = session_of(model, *words, steps=24, sparsity=0.9)
    changed = set()
    for step in range(25):
        update = min(step // 2 * 2, 20)
        share = 0.9 * (1 - (1 - update / 20) ** 3)
        assert session.masks.nonzeros == {"sensors.weight": round((1 - share) * 64)}, step
        x = torch.randn(9, 2, 8, 8)
        before = session.masks["sensors.weight"]
        (model(x) - x[:, 0, 0, :3]).square().mean().backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        if (session.masks["sensors.weight"] & ~before).any():
            changed.add(step + 1)
    assert changed  # sensors come back, too


# --- DynST by hand -------------------------------------------------------------------------------


def test_an_update_drops_the_least_influence_and_revives_by_gradient():
    class Given(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sensors = Sensors(2, 4)

    model = Given()
    spec = MethodSpec(
        prune="influence", drop="influence", grow="accumulated", grown="initial", every="2it",
        begin="0%", end="100%", drop_fraction=0.5, drop_schedule="constant", initial="influence",
    )  # fmt: skip
    first = torch.tensor([[9.0, 8, 7, 6], [1, 1, 1, 1]])
    examples = Examples(lambda seed: iter([first]), lambda net, g: (net.sensors.weight * g).sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    session = Session(
        build(spec, 0.5), model, optimizer, total_steps=10, seed=0, selector=SENSORS,
        examples=examples,
    )  # fmt: skip
    name = "sensors.weight"
    assert session.masks[name].tolist() == [[True] * 4, [False] * 4]
    gradients = (
        torch.tensor([[0.4, -0.2, 0.1, 0.0], [5.0, 0.1, -3.0, 0.3]]),
        torch.tensor([[-0.4, -0.2, 0.2, 0.4], [-5.0, 0.1, -3.0, 0.3]]),
    )
    for gradient in gradients:
        model.sensors.weight.grad = gradient.clone()
        session.after_backward()
        optimizer.step()
        session.after_step()
    # Weights after the first step are 0.8, 1.1, 0.95, 1, so the sums of |w g| are 0.72, 0.42, 0.29
    # and 0.4: the last two go. The absent ones' sums of g are 0, 0.2, -6, 0.6: the last two come.
    assert session.masks[name].tolist() == [[True, True, False, False], [False, False, True, True]]
    assert model.sensors.weight[1, 2:].tolist() == [1, 1]  # a revived sensor begins as all did


def test_scores_are_registered_and_need_what_they_look_at():
    assert registry.find("influence", registry.SCORES, "x") is influence
    assert registry.find("signal", registry.INITIAL, "x") is signal
    kind = kind_of(build_method(compose(["method=dynst"])))
    assert (kind.when, kind.start, kind.masks) == ("during", "dense", "dynamic")


def test_the_signal_is_the_variance_over_samples_and_times():
    model = forecaster((2, 3, 3), 1, hidden=())
    x = torch.randn(5, 2, 3, 3) * torch.arange(1.0, 10.0).view(3, 3)
    spec = MethodSpec(initial="signal")
    Session(
        build(spec, 1 / 3), model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=3,
        seed=0, selector=SENSORS,
        examples=Examples(lambda seed: iter([(x, x)]), lambda net, batch: net(batch[0]).mean()),
    )  # fmt: skip
    best = x.transpose(0, 1).flatten(0, 1).var(0).flatten().topk(6).indices
    kept = (model.sensors.weight != 0).flatten()
    assert set(kept.nonzero().view(-1).tolist()) == set(best.tolist())


def test_overlap_is_relative_to_the_most_that_could_be():
    informative = torch.tensor([True, True, True, False, False])
    assert overlap(torch.tensor([True, False, False, False, True]), informative) == 0.5
    assert overlap(torch.tensor([True, True, True, True, True]), informative) == 1.0
    assert overlap(torch.tensor([True, True, True, True, False]), informative[[3, 4, 0, 1, 2]]) == (
        2 / 3
    )


# --- whole runs ----------------------------------------------------------------------------------


def test_dynst_finds_the_upstream_sensors_where_chance_does_not(tmp_path):
    words = ["sparsity=0.9", "epochs=25", "data.validation=0"]
    found = train(tmp_path, *words, "method=dynst", "method.every=15it")
    chance = train(tmp_path, *words, "method=static")
    assert found["sensors/kept"] == chance["sensors/kept"] == round(6.4)
    assert found["sensors/overlap"] >= 0.8 > 0.5 >= chance["sensors/overlap"]
    assert found["test/loss"] < 0.6 * chance["test/loss"]
    assert chance["mean/loss"] == pytest.approx(1.0, abs=0.2)


def test_an_absent_sensor_costs_nothing(tmp_path):
    metrics = train(tmp_path, "method=static", "sparsity=0.75", "epochs=1")
    first, second = 2 * 2 * 64 * 32, 2 * 32 * 6
    assert metrics["flops/inference_dense"] == first + second
    assert metrics["flops/inference"] == first / 4 + second
    both = train(
        tmp_path, "method=static", "sparsity=0.75", "epochs=1", "selector.kinds=[sensor,linear]",
        "distribution=strict_uniform",
    )  # fmt: skip
    assert both["flops/inference"] == pytest.approx((first + second) / 4, rel=0.01)
