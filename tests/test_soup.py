"""Sparse Model Soups against ZIB-IOL/SMS, phase by phase, and what a soup keeps and refuses.

The golden calculation prunes over all layers by magnitude a share ``1 - (1 - s)^(1/n)`` of what is
left, retrains each member with an optimizer of its own, takes the uniform mean, and then the
statistics of batch normalisation anew (strategies.IMP, UniformEnsembling, recalibrate_bn).
"""

import copy
import io

import pytest
import torch
from torch import nn

from sparsebench.config.compose import compose
from sparsebench.errors import UserError
from sparsebench.library import method
from sparsebench.run import run
from sparsebench.sparsity import Session
from sparsebench.sparsity.examples import Examples
from sparsebench.sparsity.forecast import forecast
from sparsebench.training.optimizers import build_schedule

BEGIN, EVERY, MEMBERS, PHASES = 2, 3, 2, 2
TOTAL = BEGIN + EVERY * MEMBERS * PHASES
DIALS = {"begin": f"{BEGIN}it", "every": f"{EVERY}it", "end": f"{TOTAL}it"}
LAYERS = ("0.weight", "3.weight")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 10))


def batch(t):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 10, generator=generator), torch.randint(10, (8,), generator=generator)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def train(model, t, optimizer, masks=None):
    x, y = batch(t)
    nn.functional.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        if masks and name in masks:
            parameter.grad.mul_(masks[name])
    optimizer.step()
    optimizer.zero_grad()


class Souping:
    """A session of a soup, step by step."""

    def __init__(self, state=None, total=TOTAL, data=True, **dials):
        options = {"members": MEMBERS, "batches": 4, **dials.pop("options", {})}
        self.model = net()
        if state:
            self.model.load_state_dict(state["model"])
        self.optimizer = adam(self.model)
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.method = method("soup", sparsity=0.75, options=options, **{**DIALS, **dials})
        batches = Examples(lambda seed: (batch(1000 + t) for t in range(4))) if data else None
        self.session = Session(
            self.method, self.model, self.optimizer, total_steps=total, seed=0,
            resume=state and state["session"], examples=batches,
        )  # fmt: skip

    def step(self):
        x, y = batch(self.session.state.step)
        self.session.before_forward()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.session.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.session.after_step()

    def steps(self, number):
        for _ in range(number):
            self.step()
        return self

    def saved(self):
        parts = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "session": self.session.state_dict(),
        }  # fmt: skip
        file = io.BytesIO()
        torch.save(parts, file)
        file.seek(0)
        return torch.load(file, weights_only=True)


def pruned(model, masks, keep):
    """The largest of all layers together stay."""
    weights = dict(model.named_parameters())
    sizes = torch.cat([(weights[n].detach().abs() * masks[n]).view(-1) for n in LAYERS])
    flat = torch.zeros_like(sizes)
    flat[sizes.topk(keep).indices] = 1
    parts = flat.split([masks[n].numel() for n in LAYERS])
    found = {n: part.view_as(masks[n]) for n, part in zip(LAYERS, parts, strict=True)}
    with torch.no_grad():
        for name, mask in found.items():
            weights[name].mul_(mask)
    return found


def authors():
    """States after each phase, and the mask and members of each."""
    model, t = net(), 0
    optimizer = adam(model)
    while t < BEGIN:
        train(model, t, optimizer)
        t += 1
    masks = {name: torch.ones_like(model.get_parameter(name)) for name in LAYERS}
    found = []
    for phase in range(1, PHASES + 1):
        masks = pruned(model, masks, round(600 * 0.25 ** (phase / PHASES)))
        members = []
        for _ in range(MEMBERS):
            member = copy.deepcopy(model)
            optimizer = adam(member)
            for _ in range(EVERY):
                train(member, t, optimizer, masks)
                t += 1
            members.append(member.state_dict())
        soup = {n: sum(m[n] for m in members) / MEMBERS for n in members[0] if "num_" not in n}
        model.load_state_dict(soup, strict=False)
        model[1].reset_running_stats()
        model[1].momentum = None
        for i in range(4):
            with torch.no_grad():
                model(batch(1000 + i)[0])
        model[1].momentum = 0.1
        found.append((copy.deepcopy(model.state_dict()), masks, members))
    return found


def test_phase_by_phase_as_the_authors_do():
    souping = Souping().steps(BEGIN)
    for state, masks, members in authors():
        for member in members:
            souping.steps(EVERY - 1)
            before = souping.session.masks
            assert all(torch.equal(before[n], masks[n].bool()) for n in LAYERS)
            souping.step()
            assert member.keys() == state.keys()
        if souping.session.state.step < TOTAL:
            point = souping.method.point  # the soup, pruned for the next phase
            now = {n: t for n, t in point.items() if n not in LAYERS}
        else:
            now = souping.model.state_dict()
        for name, value in now.items():
            assert torch.allclose(value.float(), state[name].float(), atol=1e-6), name
    assert sum(souping.session.masks.nonzeros.values()) == 150


def test_members_begin_at_one_point_with_a_fresh_optimizer():
    souping = Souping().steps(BEGIN)
    point = copy.deepcopy(souping.model.state_dict())
    assert not souping.optimizer.state
    souping.steps(EVERY)
    assert not souping.optimizer.state
    for name, value in souping.model.state_dict().items():
        assert torch.equal(value, point[name]), name


def test_a_soup_has_exactly_the_zeros_of_its_members():
    souping = Souping().steps(TOTAL)
    for name in LAYERS:
        weight, mask = souping.model.get_parameter(name), souping.session.masks[name]
        assert torch.equal(weight != 0, mask)


def test_a_single_member_is_iterative_pruning_with_the_rate_rewound():
    times = {"begin": "0it", "every": "4it", "end": "12it"}
    souping = Souping(options={"members": 1}, total=12, **times)
    sparsities = [souping.session.masks.sparsity]
    for _ in range(12):
        souping.step()
        sparsities.append(souping.session.masks.sparsity)
    each = [1 - 0.25 ** (k / 3) for k in (1, 2, 3)]
    expected = [s for s in each for _ in range(4)]
    assert sparsities[:12] == pytest.approx(expected, abs=1e-3)
    assert sparsities[12] == 0.75


def test_the_best_of_the_members_may_be_taken_instead():
    souping = Souping(options={"combine": "best"}).steps(BEGIN)
    members, losses = [], []
    for _ in range(MEMBERS):
        souping.steps(EVERY - 1)
        twin = Souping(state=souping.saved(), options={"combine": "best"})
        x, y = batch(souping.session.state.step)
        nn.functional.cross_entropy(twin.model(x), y).backward()
        twin.session.after_backward()
        twin.optimizer.step()  # the member as it is before the method has its turn
        twin.model.eval()
        with torch.no_grad():
            found = [(twin.model(a), b) for a, b in map(batch, range(1000, 1004))]
        losses.append(sum(float(nn.functional.cross_entropy(*pair)) for pair in found))
        members.append(copy.deepcopy(twin.model.state_dict()))
        souping.step()
    best = members[losses.index(min(losses))]
    assert torch.equal(souping.method.point["3.bias"], best["3.bias"])
    assert torch.equal(souping.method.point["1.running_var"], best["1.running_var"])


@pytest.mark.parametrize(
    ("members", "soup"),
    [
        ((3.0, 1.2, 0.7), 0.95),  # 1.2 is nearest to 1; with 0.7 nearer; with 3 at 1.63
        ((2.0, 0.9, -0.5), 0.9),  # 0.9 is too good for the mean with 2, at 1.45
        ((1.5, 1.25, 2.0), 1.25),  # all on one side: the best alone
        ((1.0, 1.0, 1.0), 1.0),  # of equal loss, so all of them
    ],
)
def test_a_greedy_soup_takes_in_what_does_not_harm(members, soup):
    """One weight w with the loss (w - 1)^2; each member is one step away from w = 2."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[2.0, 0.01]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options = {"members": 3, "combine": "greedy", "batches": 2}
    times = {"begin": "0it", "every": "1it", "end": "3it"}
    batches = [torch.zeros(1)] * 2
    examples = Examples(lambda seed: iter(batches), lambda net, _: (net.weight[0, 0] - 1) ** 2)
    session = Session(
        method("soup", sparsity=0.5, options=options, **times), model, optimizer, total_steps=3,
        seed=0, examples=examples,
    )  # fmt: skip
    for value in members:
        (model.weight[0, 0] * (2.0 - value)).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    assert model.weight.tolist() == [[pytest.approx(soup), 0.0]]


@pytest.mark.parametrize("at", [4, 7, 11])
def test_a_greedy_soup_resumes_bitwise(at):
    options = {"combine": "greedy"}
    whole = Souping(options=options).steps(TOTAL).saved()
    half = Souping(options=options).steps(at).saved()
    resumed = Souping(state=half, options=options).steps(TOTAL - at).saved()
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name


@pytest.mark.parametrize("at", range(1, TOTAL))
def test_resume_is_bitwise_inside_any_member(at):
    whole = Souping().steps(TOTAL).saved()
    resumed = Souping(state=Souping().steps(at).saved()).steps(TOTAL - at).saved()
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    assert torch.equal(whole["session"]["generator"], resumed["session"]["generator"])


# --- the learning rate and the cost --------------------------------------------------------------


def test_each_member_has_the_rates_of_a_training_of_its_own():
    engine = method("soup", sparsity=0.75, options={"members": MEMBERS}, **DIALS)
    config = compose(["schedule=linear", "schedule.warmup=1it"]).schedule

    def rates(steps, rounds=None):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = build_schedule(optimizer, config, steps, TOTAL, rounds)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    expected = rates(BEGIN) + MEMBERS * PHASES * rates(EVERY)
    assert rates(TOTAL, engine.rounds(TOTAL, TOTAL)) == expected


def test_all_members_are_paid_for():
    engine = method("soup", sparsity=0.75, options={"members": MEMBERS}, **DIALS)
    shapes = {"a": torch.Size((20, 30))}
    paid = sum(s.steps * s.nonzeros["a"] for s in forecast(engine, shapes, TOTAL, TOTAL))
    assert paid == BEGIN * 600 + EVERY * MEMBERS * (300 + 150)


QUICK = [
    "data=digits", "model=tiny_conv", "epochs=8", "data.subset=160", "batch_size=16", "plots=false",
    "quiet=true", "trainer.accelerator=cpu", "method=soup", "method.begin=2ep", "method.every=1ep",
    "sparsity=0.75",
]  # fmt: skip


def test_a_run_ends_with_a_soup(tmp_path):
    result = run(compose([*QUICK, f"runs={tmp_path}"]))
    assert result["status"] == "finished", result.get("error")
    metrics = result["metrics"]
    assert metrics["sparsity"] == pytest.approx(0.75, abs=1e-3)
    rows = (next(tmp_path.iterdir()) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("sparsity")
    found = [float(row.split(",")[column]) for row in rows[1:]]
    assert found == pytest.approx([0, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75], abs=1e-3)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"every": "9it"}, r"method\.every=9it: one phase of 2 members takes 18 steps"),
        ({"rewind": "weights"}, r"method\.rewind=weights: the members of a soup"),
        ({"drop": "magnitude", "grow": "random"}, r"method\.drop=magnitude: the members"),
        ({"storage": "frozen"}, r"method\.storage=frozen: the members"),
        ({"sparsity_schedule": "cubic"}, r"method\.sparsity_schedule=cubic: the phases"),
        ({"options": {"members": 0}}, r"method\.options\.members=0: a whole number from 1"),
        (
            {"options": {"combine": "worst"}},
            r"method\.options\.combine=worst: one of mean, greedy",
        ),
        ({"data": False}, r"it looks at training data.*, and gets none"),
    ],
)
def test_what_makes_no_sense_is_refused(dials, said):
    with pytest.raises(UserError, match=said):
        Souping(**dials)
