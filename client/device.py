"""Which device trains: a name from a command line or a configuration, tried before it is believed."""

import torch

from ..privacy.errors import UsageError


def device_of(name: str) -> torch.device:
    """The torch device of that name, or for `auto` the GPU where there is one; raise UsageError if it cannot be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}", "--device auto, or --device cpu") from None
    return device
