"""Layer collapse: a layer that is left with no weight, so that nothing passes through it.

It happens where layers compete (a global scope), as with SNIP, GraSP and one-shot magnitude at
high sparsity (Tanaka et al., arXiv 2006.05467, section 4). None of these methods keeps such a layer
alive, so by default (``collapse: note``) the masks are left as the method chose them and the
result says which layers are empty; ``collapse: refuse`` stops the run instead.
"""

from __future__ import annotations

from sparsebench.errors import UserError
from sparsebench.sparsity.method import TrainState


def look_for_collapse(state: TrainState, what: str) -> None:
    """Say once of each layer that it has no weight left, or stop.

    Args:
        state: the run; its masks are new.
        what: ``note`` or ``refuse``.

    Raises:
        UserError: there is such a layer, and it is refused.
    """
    empty = [name for name, number in state.masks.nonzeros.items() if number == 0]
    said = f"no weight is left in {', '.join(empty)}"
    if not empty or any(note.startswith(said) for note in state.notes):
        return
    if what == "refuse":
        raise UserError(f"method.collapse=refuse: {said} at step {state.step}")
    state.notes.append(f"{said} (from step {state.step} on): nothing passes through")
