"""`make bench`, without its peers: privet's own row is measured, and the results have the form that is promised."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"


def test_results_are_a_list_of_lines_and_a_peer_that_is_missing_says_so(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    few = ["--only", "MLP 51k", "--rounds", "2", "--repeats", "1"]
    nowhere = ["--environments", str(tmp_path), "--results", str(results)]
    done = subprocess.run([sys.executable, str(BENCH), *few, *nowhere], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
    lines = json.loads(results.read_text(encoding="utf-8"))
    assert {line["peer"].split(",")[0] for line in lines} == {
        "torch node after node",
        "torch",
        "pfl 0.6",
        "Flower 1.41",
    }
    for line in lines:
        assert set(line) == {"name", "peer", "ours_ms", "peer_ms", "ratio"}
        assert line["name"] == "MLP 51k"
        assert line["ours_ms"] > 0
        assert line["peer_ms"] is line["ratio"] is None
