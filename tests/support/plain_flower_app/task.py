"""plain-flower-app: the model, the data, training and evaluation."""

import numpy as np

FEATURES = 5
TRUE_WEIGHTS = np.arange(1.0, FEATURES + 1)


def get_initial_model() -> list[np.ndarray]:
    """Weights and bias of a linear model."""
    return [np.zeros(FEATURES), np.zeros(1)]


def load_data(partition_id: int, num_partitions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test records of one partition."""
    rng = np.random.default_rng(1000 * num_partitions + partition_id)
    inputs = rng.normal(size=(80 + 20 * partition_id, FEATURES))
    targets = inputs @ TRUE_WEIGHTS + 0.5 + rng.normal(scale=0.01, size=len(inputs))
    split = int(0.8 * len(inputs))
    return inputs[:split], targets[:split], inputs[split:], targets[split:]


def train(model: list[np.ndarray], inputs: np.ndarray, targets: np.ndarray, epochs: int, lr: float) -> float:
    """Train the model in place by gradient descent; gives the mean loss."""
    weights, bias = model
    losses = []
    for _ in range(epochs):
        error = inputs @ weights + bias - targets
        losses.append(float(np.mean(error**2)))
        weights -= lr * 2 * inputs.T @ error / len(inputs)
        bias -= lr * 2 * error.mean()
    return float(np.mean(losses))


def test(model: list[np.ndarray], inputs: np.ndarray, targets: np.ndarray) -> float:
    """The mean squared error."""
    weights, bias = model
    return float(np.mean((inputs @ weights + bias - targets) ** 2))
