"""Weights as products, by singular values and by dictionaries, against their own definitions."""

import itertools

import pytest
import torch

from sparsebench.errors import UserError
from sparsebench.llm.dictionary import learn, omp, update_atom, update_atoms
from sparsebench.llm.factoriser import Factoriser
from sparsebench.llm.factors import (
    dictionary,
    factorise,
    multiply,
    sizes,
    storage,
    stored,
    svd,
    whitening,
)
from sparsebench.llm.inputs import Inputs
from sparsebench.llm.scores import Weights
from sparsebench.llm.spec import FactorSpec


def draw(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def error(signals, codes, atoms):
    return float((signals - codes @ atoms).square().sum())


def layer(rows=20, columns=12, tokens=90, seed=0, measured=True):
    """Weights with the Gram matrix of correlated inputs, and the inputs."""
    x = draw(tokens, columns, seed=seed) @ draw(columns, columns, seed=seed + 1) + 0.3
    inputs = Inputs(columns, {"gram"} if measured else (), torch.device("cpu"))
    inputs.add(x.float().unsqueeze(0))
    values = draw(rows, columns, seed=seed + 2).float()
    return Weights("w", values, inputs, None, torch.Generator()), x


# --- orthogonal matching pursuit ----------------------------------------------------------------


def plain_omp(signal, atoms, count):
    chosen, left = [], signal
    for _ in range(count):
        size = (atoms @ left).abs()
        size[chosen] = -1
        chosen.append(int(size.argmax()))
        found = torch.linalg.lstsq(atoms[chosen].T, signal).solution
        left = signal - atoms[chosen].T @ found
    code = torch.zeros(len(atoms), dtype=signal.dtype)
    code[chosen] = found
    return code


@pytest.mark.parametrize("number", [5, 12, 30])
def test_omp_is_that_of_one_signal_after_another(number):
    signals, atoms = draw(40, 12), unit(draw(number, 12, seed=1))
    expected = torch.stack([plain_omp(signal, atoms, 5) for signal in signals])
    assert torch.allclose(omp(signals, atoms, 5), expected, atol=1e-9)


def test_omp_of_orthonormal_atoms_takes_the_largest_products():
    signals = draw(9, 6)
    atoms = torch.linalg.qr(draw(6, 6, seed=1)).Q
    expected = torch.stack([plain_omp(signal, atoms, 2) for signal in signals])
    assert torch.allclose(omp(signals, atoms, 2), expected, atol=1e-12)


@pytest.mark.parametrize("step", [2, 3, 4, 99])
def test_several_atoms_at_a_time_are_fitted_together(step):
    signals, atoms = draw(10, 12), unit(draw(16, 12, seed=1))
    codes = omp(signals, atoms, 6, step)
    assert ((codes != 0).sum(1) == 6).all()
    for signal, code in zip(signals, codes, strict=True):
        where = code.nonzero().squeeze(1)
        fitted = torch.linalg.lstsq(atoms[where].T, signal).solution
        assert torch.allclose(code[where], fitted, atol=1e-8)


def test_an_atom_that_is_there_twice_breaks_nothing():
    atoms = unit(draw(4, 6, seed=1))
    codes = omp(draw(5, 6), torch.cat([atoms, atoms]), 6)
    assert torch.isfinite(codes).all()
    assert ((codes != 0).sum(1) <= 6).all()


# --- dictionaries -----------------------------------------------------------------------------


def test_no_update_of_an_atom_makes_the_error_larger():
    signals, atoms = draw(30, 8), unit(draw(14, 8, seed=1))
    codes = omp(signals, atoms, 3)
    support, left = codes != 0, signals - codes @ atoms
    errors = [error(signals, codes, atoms)]
    for _ in range(3):
        for number in range(len(atoms)):
            update_atom(left, atoms, codes, number)
            errors.append(error(signals, codes, atoms))
    assert torch.allclose(left, signals - codes @ atoms, atol=1e-10)
    assert all(after <= before + 1e-10 for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]
    assert torch.equal(codes != 0, support)
    assert torch.allclose(atoms.norm(dim=1), torch.ones(14, dtype=torch.float64))


def test_updates_of_one_atom_end_at_the_best_approximation_of_rank_1():
    signals, atoms = draw(30, 8), unit(draw(1, 8, seed=1))
    codes = omp(signals, atoms, 1)
    for _ in range(200):
        update_atoms(signals, atoms, codes)
    best = torch.linalg.svdvals(signals)[1:].square().sum()
    assert error(signals, codes, atoms) == pytest.approx(float(best))


def test_atoms_that_nobody_uses_become_the_worst_signals():
    signals, atoms = draw(6, 5), unit(draw(4, 5, seed=1))
    codes = torch.zeros(6, 4, dtype=torch.float64)
    codes[:, 0] = signals @ atoms[0]
    update_atoms(signals, atoms, codes)
    left = signals - codes @ atoms
    worst = left[left.norm(dim=1).argsort(descending=True)[:3]]
    assert torch.allclose(atoms[1:], unit(worst))


def test_learning_never_makes_the_error_larger_and_keeps_the_count():
    signals = draw(60, 10)
    errors = []
    for turns in range(1, 6):
        codes, atoms = learn(signals, 16, 3, turns)
        assert ((codes != 0).sum(1) == 3).all()
        errors.append(error(signals, codes, atoms))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_as_many_atoms_as_inputs_are_exact():
    signals = draw(30, 7)
    codes, atoms = learn(signals, 7, 7, 2)
    assert torch.allclose(codes @ atoms, signals, atol=1e-9)


# --- products ---------------------------------------------------------------------------------


def test_the_error_of_outputs_is_that_of_whitened_weights():
    weights, x = layer()
    lower = whitening([weights.inputs], 0.0)
    other = draw(20, 12, seed=9)
    outputs = (x @ (weights.values.double() - other).T).square().sum() / len(x)
    whitened = ((weights.values.double() - other) @ lower).square().sum()
    assert float(whitened) == pytest.approx(float(outputs), rel=1e-5)
    assert torch.equal(lower, lower.tril())


def test_svd_is_the_best_of_its_rank_and_with_text_the_best_for_outputs():
    weights, x = layer(seed=3)
    spec = FactorSpec(compression=0.4, damping=0.0)
    rank = int(0.6 * 20 * 12 / 32)
    lower = whitening([weights.inputs], 0.0)
    (kept,) = factorise([weights], 0.4, spec, svd)
    assert kept["codes"].shape == (20, rank)
    aware = multiply(kept, kept["atoms"]).double()
    best = torch.linalg.svdvals(weights.values.double() @ lower)[rank:].square().sum()
    found = (x @ (weights.values.double() - aware).T).square().sum() / len(x)
    assert float(found) == pytest.approx(float(best), rel=1e-4)
    unmeasured, _ = layer(seed=3, measured=False)
    (kept,) = factorise([unmeasured], 0.4, spec, svd)
    blind = multiply(kept, kept["atoms"]).double()
    best = torch.linalg.svdvals(weights.values.double())[rank:].square().sum()
    lost = (weights.values.double() - blind).square().sum()
    assert float(lost) == pytest.approx(float(best), rel=1e-4)
    assert found < (x @ (weights.values.double() - blind).T).square().sum() / len(x)


def test_a_dictionary_of_one_atom_is_the_best_rank_1_for_outputs():
    weights, x = layer(rows=6, columns=5)
    spec = FactorSpec(form="dictionary", damping=0.0, rho=1.0, iterations=60)
    one = next(c / 1000 for c in range(999, 0, -1) if sizes((6, 5), c / 1000, 1.0) == (1, 1))
    (kept,) = factorise([weights], one, spec, dictionary)
    found = multiply(kept, kept["atoms"]).double()
    lower = whitening([weights.inputs], 0.0)
    best = torch.linalg.svdvals(weights.values.double() @ lower)[1:].square().sum()
    lost = (x @ (weights.values.double() - found).T).square().sum() / len(x)
    assert float(lost) == pytest.approx(float(best), rel=1e-4)


def test_a_dictionary_is_nearer_than_low_rank_of_the_same_storage():
    mixes = [draw(40, 2, seed=s) @ draw(2, 24, seed=50 + s) for s in range(6)]
    rows = torch.cat(mixes)  # six planes, which no subspace of few dimensions holds
    spec = FactorSpec(form="dictionary", iterations=10)
    found = dictionary(rows, 0.6, spec)
    low = svd(rows, 0.6, spec)
    assert error(rows, found.codes, found.atoms) < 0.5 * error(rows, low.codes, low.atoms)
    assert ((found.codes != 0).sum(1) == found.each).all()


@pytest.mark.parametrize("compression", [0.2, 0.3, 0.4])
@pytest.mark.parametrize("shape", [(576, 576), (192, 576), (1536, 576), (576, 1536)])
def test_storage_is_what_is_asked_for_and_counted_by_hand(shape, compression):
    outputs, inputs = shape
    dense = 2 * outputs * inputs
    number, count = sizes(shape, compression, 2.0)
    bits = 16 * number * inputs + 16 * count * outputs + number * outputs
    assert 0 <= (1 - compression) * 8 * dense - bits < 16 * inputs + outputs
    assert 2.0 <= number / count < 2.2
    codes = torch.zeros(outputs, number)
    codes[:, 3 : 3 + count] = 1.0
    kept = stored(codes, count) | {"atoms": torch.zeros(number, inputs)}
    assert sum(storage(kept).values()) * 8 == pytest.approx(bits, abs=8)
    assert set(storage(kept)) == {"atoms", "values", "places"}
    rank = int((1 - compression) * outputs * inputs / (outputs + inputs))
    low = {"codes": torch.zeros(outputs, rank), "atoms": torch.zeros(rank, inputs)}
    saved = 1 - sum(storage(low).values()) / dense
    assert compression <= saved < compression + 2 / rank


def test_sparse_codes_come_back_as_they_were():
    codes = torch.zeros(5, 11)
    codes[0, [1, 10]] = torch.tensor([2.0, -3.0])
    codes[1, [0, 7]] = torch.tensor([0.5, 4.0])
    codes[3, 4] = 1.0  # and a zero, which keeps its place
    atoms = torch.eye(11)
    kept = stored(codes, 2)
    assert kept["values"].shape == (5, 2)
    assert torch.equal(multiply(kept, atoms), codes)


def test_layers_of_a_group_share_atoms_that_see_all_their_inputs():
    first, x = layer()
    second, y = layer(seed=20)
    spec = FactorSpec(damping=0.0)
    both = factorise([first, second], 0.4, spec, svd)
    assert [sorted(kept) for kept in both] == [["atoms", "codes"], ["codes"]]
    rows = torch.cat([first.values, second.values]).double()
    gram = (x.T @ x + y.T @ y) / (len(x) + len(y))
    lower = torch.linalg.cholesky(gram)
    rank = int(0.6 * 40 * 12 / 52)
    best = torch.linalg.svdvals(rows @ lower)[rank:].square().sum()
    found = torch.cat([multiply(kept, both[0]["atoms"]) for kept in both]).double()
    assert float(((rows - found) @ lower).square().sum()) == pytest.approx(float(best), rel=1e-4)


def test_a_singular_gram_matrix_is_damped_and_said_so(capsys):
    inputs = Inputs(6, {"gram"}, torch.device("cpu"))
    inputs.add(draw(1, 3, 6).float())
    lower = whitening([inputs], 0.0, "w")
    assert torch.isfinite(lower).all()
    assert "w: the Gram matrix of its inputs is singular" in capsys.readouterr().err


def test_too_much_compression_is_refused():
    weights, _ = layer()
    for form in (svd, dictionary):
        with pytest.raises(UserError, match=r"method\.compression=0\.99: nothing would be left"):
            factorise([weights], 0.99, FactorSpec(), form)


def test_an_unknown_form_is_refused():
    with pytest.raises(UserError, match=r"method\.form=svdd.*did you mean 'svd'"):
        Factoriser.of(FactorSpec(form="svdd"))
