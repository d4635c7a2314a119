"""A simulation is a rehearsal: a task that a deployment would refuse is refused here too, whatever engine trains it.

A deployment's probe tries the clipped sum that Opacus gives. The cohort engine tries its own sum against gradients
taken one by one, and has no use for Opacus, which takes longer to import than a small simulation takes to run. So where
the cohort engine is believed, Opacus is tried only for what it is not known to get right.
"""

import torch
from torch import nn

from ..client.clipping import own_parameters
from .cohort.model import CohortModel

_RECORDS = 2
_SEED = 203


def is_sure_of_opacus(model: CohortModel) -> bool:
    """Whether Opacus is known to take the gradients of this model, which `check` has tried, as torch does."""
    trained = [module for module in model.plain.modules() if own_parameters(module)]
    return all(_is_plain(module) for module in trained) and _uses_everything(model)


def _is_plain(module: nn.Module) -> bool:
    """A layer as most are: Opacus pads with zeros whatever the layer says, and wants both parameters of a norm."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return len(own_parameters(module)) == 2
    return isinstance(module, nn.Linear | nn.Embedding)


def _uses_everything(model: CohortModel) -> bool:
    """Whether every trained parameter has a part in the loss: Opacus has no gradient of one that has none."""
    generator = torch.Generator().manual_seed(_SEED)
    records = model.task.facts(model.options).example(_RECORDS, generator).to(model.device)
    loss = model.task.loss(model.plain(records.inputs), records.targets).sum()
    trained = [parameter for parameter in model.plain.parameters() if parameter.requires_grad]
    return all(part is not None for part in torch.autograd.grad(loss, trained, allow_unused=True))
