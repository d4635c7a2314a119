"""UnsupportedError: a model that the cohort engine does not know; the caller trains it node by node."""

from torch import nn

from ...privacy.errors import TaskError

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class UnsupportedError(TaskError):
    """A model that the engine cannot stack. `layer` names what it stumbled over, for a line like `sequential: LSTM`."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"the cohort engine does not know {layer}", "--engine sequential")
        self.layer = layer


def described(module: nn.Module, path: str) -> str:
    """`recurrent LSTM (at encoder.rnn)`."""
    kind = "recurrent " if isinstance(module, _RECURRENT) else ""
    where = f" (at {path})" if path else ""
    return f"{kind}{type(module).__name__}{where}"
