"""Sparse dictionary learning: each signal a combination of few atoms out of many.

Orthogonal matching pursuit (OMP) for all signals at once, and the updates of one atom after
another of K-SVD (Aharon 2006) by power iteration, as CoSpaDi (arXiv 2509.22075) alternates them.
A signal is a row here, and an atom a row of norm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Signals that are coded at a time: of each, rows for all its atoms are held.
CHUNK = 32


def learn(
    signals: Tensor, number: int, count: int, iterations: int, step: int = 1
) -> tuple[Tensor, Tensor]:
    """Atoms and codes by turns of OMP and atom updates.

    The first atoms are right singular vectors, and where these do not suffice the largest signals.
    A signal keeps its code where OMP, which is greedy, finds a worse one, so that the squared
    error never rises.

    Args:
        signals: (signals, d).
        number: of atoms.
        count: atoms of each signal.
        iterations: turns.
        step: atoms that OMP takes at a time.

    Returns:
        Codes (signals, atoms) and atoms (atoms, d).
    """
    atoms = _first(signals, number)
    codes = torch.zeros(len(signals), number, dtype=signals.dtype, device=signals.device)
    for _ in range(iterations):
        fresh = omp(signals, atoms, count, step)
        better = _errors(signals, fresh, atoms) < _errors(signals, codes, atoms)
        codes = torch.where(better.unsqueeze(1), fresh, codes)
        update_atoms(signals, atoms, codes)
    return codes, atoms


def _first(signals: Tensor, number: int) -> Tensor:
    vectors = torch.linalg.svd(signals, full_matrices=False).Vh[:number]
    missing = number - len(vectors)
    norms = signals.norm(dim=1)
    largest = norms.topk(missing).indices
    more = signals[largest] / norms[largest].clamp(min=torch.finfo(norms.dtype).tiny).unsqueeze(1)
    return torch.cat([vectors, more])


def _errors(signals: Tensor, codes: Tensor, atoms: Tensor) -> Tensor:
    """Squared error of each signal (signals)."""
    return (signals - codes @ atoms).square().sum(1)


def omp(signals: Tensor, atoms: Tensor, count: int, step: int = 1) -> Tensor:
    """Codes of ``count`` atoms a signal, with the least-squares coefficients for these.

    The atom that correlates most with what is left of a signal joins, and all coefficients are
    fitted anew. What is left is never formed: the chosen atoms' Gram matrix is factorised
    (Cholesky) as it grows (batch OMP, Rubinstein 2008). Of orthonormal atoms the largest products
    are the answer.

    Args:
        signals: (signals, d).
        atoms: (atoms, d), of norm 1.
        count: of each signal, at most the number of atoms.
        step: atoms that join at a time; more than one is generalised OMP (arXiv 1111.6664), which
            is faster.

    Returns:
        (signals, atoms), zero where an atom is not taken.
    """
    gram = atoms @ atoms.t()
    products = signals @ atoms.t()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if bool((gram - identity).abs().max() < 1e-5):
        chosen = products.abs().topk(count, dim=1).indices
        return torch.zeros_like(products).scatter_(1, chosen, products.gather(1, chosen))
    return torch.cat([_omp(part, gram, count, step) for part in torch.split(products, CHUNK)])


def _omp(products: Tensor, gram: Tensor, count: int, step: int) -> Tensor:
    """OMP from the products of signals and atoms (signals, atoms), and of atoms (atoms, atoms)."""
    signals, atoms = products.shape
    left = products.clone()  # products of atoms and what is left of the signals
    chosen = torch.empty(signals, count, dtype=torch.long, device=products.device)
    # With G the Gram matrix of all atoms and C that of the chosen ones, C = U^T U:
    rows = products.new_empty(signals, count, atoms)  # U^-T times the chosen rows of G
    fitted = products.new_empty(signals, count, 1)  # U times the coefficients
    taken = torch.zeros_like(products, dtype=torch.bool)
    for first in range(0, count, step):
        new = slice(first, min(first + step, count))
        picked = left.abs().masked_fill_(taken, -1.0).topk(new.stop - first, dim=1).indices
        taken.scatter_(1, picked, True)
        chosen[:, new] = picked
        fresh, known = gram[picked], rows[:, :first]
        if first:
            fresh = torch.baddbmm(fresh, _columns(known, picked).mT, known, alpha=-1)
        lower = _root(_columns(fresh, picked))
        rows[:, new] = torch.linalg.solve_triangular(lower, fresh, upper=False)
        own = left.gather(1, picked).unsqueeze(2)
        fitted[:, new] = part = torch.linalg.solve_triangular(lower, own, upper=False)
        left -= (part.mT @ rows[:, new]).squeeze(1)
    upper = _columns(rows, chosen)
    found = torch.linalg.solve_triangular(upper, fitted, upper=True).squeeze(2)
    return torch.zeros_like(products).scatter_(1, chosen, found)


def _columns(rows: Tensor, which: Tensor) -> Tensor:
    """Of each signal's (n, atoms) the columns of some atoms: (signals, n, atoms of ``which``)."""
    return rows.gather(2, which.unsqueeze(1).expand(-1, rows.shape[1], -1))


def _root(square: Tensor) -> Tensor:
    """Lower Cholesky factors of (signals, n, n), also where an atom is hardly a new direction."""
    tiny = 100 * torch.finfo(square.dtype).eps
    square = square + tiny * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    lower, failed = torch.linalg.cholesky_ex(square)
    if bool(failed.any()):  # each such atom for itself
        plain = square.diagonal(dim1=1, dim2=2).clamp(min=tiny).sqrt()
        lower = torch.where((failed == 0)[:, None, None], lower, torch.diag_embed(plain))
    found: Tensor = lower
    return found


def update_atoms(signals: Tensor, atoms: Tensor, codes: Tensor) -> None:
    """Better all atoms and their coefficients in place, one after another.

    Atoms that no signal has become what is left of the signals with the largest errors.

    Args:
        signals: (signals, d).
        atoms: (atoms, d), of norm 1; changed.
        codes: (signals, atoms); changed where they are not zero.
    """
    left = signals - codes @ atoms
    for number in range(len(atoms)):
        update_atom(left, atoms, codes, number)
    unused = (codes == 0).all(0).nonzero().squeeze(1)
    norms = left.norm(dim=1)
    worst = norms.topk(min(len(unused), len(signals))).indices
    worst = worst[norms[worst] > 0]
    atoms[unused[: len(worst)]] = left[worst] / norms[worst].unsqueeze(1)


def update_atom(left: Tensor, atoms: Tensor, codes: Tensor, number: int) -> None:
    """Better one atom and its coefficients: nearer to the best rank-1 approximation.

    What is approximated is what other atoms leave of the signals that have this one. A step of
    power iteration from where atom and coefficients are never makes the error larger.

    Args:
        left: (signals, d): what all atoms leave of the signals; changed.
        atoms: (atoms, d), of norm 1; changed.
        codes: (signals, atoms); changed where they are not zero.
        number: of the atom.
    """
    atom, code = atoms[number].clone(), codes[:, number].clone()
    # What the others leave is left + code atom^T, which is not formed.
    better = torch.addmv(atom * (code @ code), left.t(), code)
    norm = better.norm()
    if norm == 0:
        return
    better /= norm
    fitted = torch.addmv(code * (atom @ better), left, better).masked_fill_(code == 0, 0.0)
    left.addr_(code, atom).addr_(fitted, better, alpha=-1)
    atoms[number], codes[:, number] = better, fitted
