"""Clipping of whole updates, as a node does it where nodes are hidden: many nodes at once, or one.

An update is what training added to the round's model, over all trainable parameters together. It is scaled down to an
L2 norm of at most the clip norm, so that no node moves the server's sum by more, whatever it holds. The server does not
rely on it, and clips again (server/central.py); what only the node can tell is whether there was anything to clip.
"""

import torch
from torch import Tensor


def clip_updates(start: Tensor, values: Tensor, clip_norm: float) -> Tensor:
    """Scale each row's update down to `clip_norm`, in place; give which were within it before, [N] bool.

    `start`: the round's model, [d] float32. `values`: trained parameters, [N, d] float32. A row that is not finite
    becomes the model itself, an update of nothing, and was not within.

    >>> values = torch.tensor([[3.0, 4.0], [0.3, 0.4], [float("nan"), 0.0]])
    >>> clip_updates(torch.zeros(2), values, 1.0).tolist()
    [False, True, False]
    >>> values.tolist()
    [[0.6000000238418579, 0.800000011920929], [0.30000001192092896, 0.4000000059604645], [0.0, 0.0]]
    """
    if not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, got {clip_norm}")
    within = torch.empty(len(values), dtype=torch.bool, device=values.device)
    for place, row in enumerate(values):  # one by one: doubles of one row, however many there are
        update = row.double() - start.double()
        norm = torch.linalg.vector_norm(update)  # infinite or NaN where any value is
        within[place] = norm <= clip_norm
        if not torch.isfinite(norm):
            row.copy_(start)
        elif norm > clip_norm:
            row.copy_(start.double() + update * (clip_norm / norm))
    return within
