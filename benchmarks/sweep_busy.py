"""How busy a sweep keeps the cores: python benchmarks/sweep_busy.py [--plan NAME] [--points N] [--processes N]

Busy is the processor time of the sweep and all its processes, over what the cores could have given while it ran, start
and report included. What others used, what the machine's host took (steal) and what nobody used stand beside it: a
sweep that shares its machine cannot be busier than what is left to it. So there is also the share of cores that it had
work for: how many of its processes ran, or waited for nothing but a core, looked at every 20 ms.
"""

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Of /proc/stat's first line, in clock ticks of all processors.
FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
RATES = (2, 4, 6, 8)
EVERY = 0.02  # seconds between two looks


def ticks() -> dict[str, float]:
    """Seconds since the machine started, by what they were spent on."""
    line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    counted = map(int, line.split()[1:])
    return {name: count / os.sysconf("SC_CLK_TCK") for name, count in zip(FIELDS, counted, strict=False)}


@dataclass(frozen=True)
class Swept:
    """Seconds by the wall, of processors by the sweep, and of the machine by what they went to; how many could run."""

    wall: float
    ours: float
    machine: dict[str, float]
    runnable: list[int]


def swept(plan: str, points: int, processes: int, rounds: int | None) -> Swept:
    rates = ",".join(map(str, RATES[: max(1, min(len(RATES), points))]))
    seeds = max(1, points // len(RATES))
    runnable: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "privet", "sweep", plan, "--over", f"training.learning-rate={rates}"]
        command += ["--seeds", str(seeds), "--processes", str(processes), "--out", f"{folder}/sweep", "--json"]
        command += [] if rounds is None else ["--set", f"run.rounds={rounds}"]
        before, began = ticks(), time.monotonic()
        sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        while sweep.poll() is None:
            runnable.append(sum(is_runnable(pid) for pid in family(sweep.pid)))
            time.sleep(EVERY)
        if sweep.returncode:
            raise SystemExit("the sweep failed")
        wall, after = time.monotonic() - began, ticks()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Swept(
        wall,
        used.ru_utime + used.ru_stime,
        {name: after[name] - before[name] for name in before},
        runnable,
    )


def family(pid: int) -> list[int]:
    """The process, and those that it started."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [pid, *(below for child in found for below in family(int(child)))]


def is_runnable(pid: int) -> bool:
    """Whether one of its threads runs, or waits for a core and for nothing else."""
    try:
        states = [path.read_text(encoding="utf-8") for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False
    return any(state.rpartition(")")[2].split()[0] == "R" for state in states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="breast-cancer")
    parser.add_argument("--points", type=int, default=32, help="a multiple of 4")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, help="in place of the plan's")
    asked = parser.parse_args()
    found = swept(asked.plan, asked.points, asked.processes, asked.rounds)
    wall, ours, machine = found.wall, found.ours, found.machine
    cores = len(os.sched_getaffinity(0))
    given = wall * cores
    idle = machine["idle"] + machine["iowait"]
    others = max(0.0, sum(machine.values()) - idle - machine["steal"] - ours)
    print(f"{asked.points} points of {asked.plan} in {asked.processes} processes on {cores} cores: {wall:.1f} s")
    print(f"busy       {ours / given:6.1%}  ({ours:.1f} s of processor time, {ours / asked.points:.2f} s a point)")
    print(f"others     {others / given:6.1%}")
    print(f"steal      {machine['steal'] / given:6.1%}")
    print(f"nobody     {idle / given:6.1%}")
    wanted = sum(min(cores, count) for count in found.runnable) / (cores * len(found.runnable))
    print(f"had work for {wanted:.1%} of the cores")
    longest = [sum(1 for _ in run) for is_less, run in itertools.groupby(n < cores for n in found.runnable) if is_less]
    told = ", ".join(f"{count * wall / len(found.runnable):.2f}" for count in sorted(longest, reverse=True)[:5])
    print(f"longest times with less than that (s): {told or 'none'}")


if __name__ == "__main__":
    main()
