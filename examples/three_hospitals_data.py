"""Write three hospitals' files: the digits that ship with scikit-learn, dealt out like cards. Usage: FOLDER."""

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_digits

HOSPITALS = ("st-marys", "charite", "karolinska")


def main(folder: Path) -> None:
    """One CSV a hospital, with the columns that task `digits` reads."""
    pixels, labels = load_digits(return_X_y=True)
    folder.mkdir(parents=True, exist_ok=True)
    for place, hospital in enumerate(HOSPITALS):
        with (folder / f"{hospital}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"pixel_{i}" for i in range(64)), "label"])
            for row, label in zip(pixels[place::3].astype(int), labels[place::3], strict=True):
                writer.writerow([*row, label])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
