"""Any topology with any drop, growth, structure, distribution and schedule, on a tiny network.

Each combination either trains with exact counts and a valid pattern, or is refused in one line
that names a key and gives the reason. What is refused is listed here, so that nothing is by chance.
"""

from itertools import product

import pytest
import torch
from torch import nn

from sparsebench.errors import UserError
from sparsebench.sparsity import DistributionSpec, MethodSpec, Session, StructureSpec, registry
from sparsebench.sparsity.build import build
from sparsebench.sparsity.examples import Examples

STRUCTURES = {
    "unstructured": StructureSpec(),
    "nm": StructureSpec(name="nm", n=2, m=4),
    "block": StructureSpec(name="block", block=[2, 2]),
    "fan_in": StructureSpec(name="fan_in"),
    "channel": StructureSpec(name="channel"),
}
WINDOW = {"begin": "0%", "end": "100%", "every": "1it"}
STEPS = 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def batch(t: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(6, 8, generator=generator), torch.arange(6) % 4


def train(structure: str, distribution: str = "uniform", **parts) -> list[dict[str, torch.Tensor]]:
    """The masks after 0, 1, ... steps.

    Raises:
        UserError: the parts make no sense together.
    """
    spec = MethodSpec(**{**WINDOW, **parts})
    method = build(spec, 0.5, DistributionSpec(distribution), STRUCTURES[structure])
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    session = Session(
        method, model, optimizer, total_steps=STEPS, seed=0,
        examples=Examples(lambda seed: iter([batch(seed % 97), batch(seed % 89)])),
    )  # fmt: skip
    masks = [dict(session.masks.items())]
    for t in range(STEPS):
        session.before_forward()
        x, y = batch(t)
        nn.functional.cross_entropy(model(x), y).backward()
        session.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        session.masks.check()
        masks.append(dict(session.masks.items()))
    return masks


def fits(structure: str, mask: torch.Tensor) -> bool:
    """Whether a mask of shape (outputs, inputs) has the pattern of a structure."""
    if structure == "nm":
        return bool((mask.view(len(mask), -1, 4).sum(2) == 2).all())
    if structure == "block":
        rows, columns = mask.shape
        blocks = mask.view(rows // 2, 2, columns // 2, 2).sum((1, 3))
        return bool(((blocks == 0) | (blocks == 4)).all())
    if structure == "fan_in":
        numbers = mask.sum(1)
        return len(set(numbers[numbers > 0].tolist())) <= 1
    if structure == "channel":
        return bool((mask.all(1) | ~mask.any(1)).all())
    return True


def check(structure: str, masks: list[dict[str, torch.Tensor]], *, constant: bool) -> None:
    """Exact counts; the pattern holds at the end, and at each step of a constant sparsity."""
    totals = [sum(int(mask.sum()) for mask in at.values()) for at in masks]
    for at in masks if constant else masks[-1:]:
        assert all(fits(structure, mask) for mask in at.values())
    if constant:
        assert len(set(totals)) == 1
    half = sum(mask.numel() for mask in masks[-1].values()) // 2
    if structure in ("unstructured", "nm"):  # of channels and rows the structure says how many
        assert totals[-1] == half
    if structure == "block":  # the nearest whole block of each layer
        assert abs(totals[-1] - half) <= 2 * len(masks[-1])


def refusals(cases, run) -> dict[tuple, str]:
    """What cases are refused with, in one line that names a key and its value."""
    found = {}
    for case in cases:
        try:
            run(*case)
        except UserError as error:
            found[case] = str(error)
            assert "\n" not in found[case]
            assert found[case].startswith(("method.", "structure.", "distribution."))
    return found


def of_absent_channels(structure, drop, grow):
    """An absent channel is zero before and behind its ReLU: nothing tells one from another."""
    return structure == "channel" and grow in ("gradient", "saliency", "momentum")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_drop_with_every_growth(structure):
    def run(drop, grow):
        check(structure, train(structure, drop=drop, grow=grow), constant=True)

    cases = list(product(registry.SCORES, registry.GROWERS))
    refused = refusals(cases, run)
    assert set(refused) == {case for case in cases if of_absent_channels(structure, *case)}


def of_first_masks(structure, initial):
    """Walks and groups lay single weights out; what has not moved yet has no movement."""
    placed = initial in ("phew", "small_world", "group_to_group")
    return initial in ("movement", "phew") or (placed and structure != "unstructured")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_first_topology_with_every_distribution(structure):
    def run(initial, distribution):
        dense = initial == "dense"
        schedule = "once" if dense else "constant"
        masks = train(
            structure, distribution, initial=initial, sparsity_schedule=schedule, begin="34%"
        )
        check(structure, masks, constant=not dense)

    distributions = list(registry.DISTRIBUTIONS)
    cases = list(
        product(registry.INITIAL, distributions if structure == "unstructured" else ["erk"])
    )
    refused = refusals(cases, run)
    assert set(refused) == {case for case in cases if of_first_masks(structure, case[0])}


def test_walks_share_weights_out_over_all_layers():
    masks = train("unstructured", initial="phew", initial_scope="global")
    check("unstructured", masks, constant=True)


def of_pruning(structure, score, schedule, scope):
    """Rows and groups with a number of their own can't compete, nor can what has not moved."""
    bound = structure in ("nm", "fan_in") and scope == "global"
    return bound or (score == "movement" and schedule == "alternating")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_pruning_score_with_every_schedule_scope_and_storage(structure):
    def run(score, schedule, scope, storage):
        masks = train(
            structure, initial="dense", prune=score, sparsity_schedule=schedule, scope=scope,
            storage=storage,
        )  # fmt: skip
        check(structure, masks, constant=False)

    schedules = [name for name in registry.SPARSITY_SCHEDULES if name not in ("once", "constant")]
    storages = ("zeroed", "frozen", "shadow") if structure == "unstructured" else ("zeroed",)
    cases = list(product(registry.SCORES, schedules, ("layer", "global"), storages))
    refused = refusals(cases, run)
    assert set(refused) == {case for case in cases if of_pruning(structure, *case[:3])}
