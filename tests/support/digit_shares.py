"""The shares of a simulated federation, as the files of institutions; and the arrays of a model's file, to compare."""

import csv
from pathlib import Path

from privet.client.tasks.registry import load_task
from privet.privacy.plan import Plan
from privet.simulations.world import World
from safetensors.numpy import load_file
from sklearn.datasets import load_digits


def write_shares(plan: Plan, folder: Path) -> dict[str, tuple[Path, int]]:
    """A CSV with what each simulated node holds of the digits, by the node's name; and how many records that is."""
    pixels, labels = load_digits(return_X_y=True)
    folder.mkdir(parents=True, exist_ok=True)
    shares = {}
    for name, share in World.of(plan, load_task("digits")).shares.items():
        path = folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"pixel_{place}" for place in range(64)), "label"])
            writer.writerows([*pixels[place].astype(int), labels[place]] for place in share.indices.tolist())
        shares[name] = (path, len(share.indices))
    return shares


def arrays_in(model: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Names, dtypes, shapes and bytes; not the run's name, which the file holds too."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in sorted(load_file(model).items())}
