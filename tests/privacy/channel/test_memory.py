"""Page faults are counted, in a process of its own: what malloc is told holds for a whole process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from privet.privacy.channel.memory import keep_chunks, zeros

IS_GLIBC = platform.libc_ver()[0] == "glibc"
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 2**20


def faults(work: str) -> int:
    """Minor page faults of some work, after the same work has run once."""
    program = f"""
import io, resource
from privet.privacy.channel.memory import keep_chunks, zeros
def work():
    {work}
{"keep_chunks()" if "keep_chunks" in work else ""}
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("size", [0, 1, MIB, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 5])
def test_zeros_are_as_many_as_asked_for(size: int) -> None:
    assert zeros(size) == bytes(size)


def test_telling_malloc_twice_does_no_harm() -> None:
    keep_chunks()
    keep_chunks()
    assert zeros(8 * MIB)[-1] == 0


@pytest.mark.skipif(not IS_GLIBC, reason="malloc is told by glibc's mallopt")
def test_chunks_find_their_memory_again() -> None:
    """40 small arrays are held, freed, and held again."""
    hold = "held = [bytes([n]) * 2**21 for n in range(40)]"
    assert faults(f"{hold}  # keep_chunks") < faults(hold) / 10


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[never]" in LARGE_PAGES.read_text(encoding="utf-8"), reason="no large pages here"
)
def test_large_arrays_lie_in_large_pages() -> None:
    fill = "stream = io.BytesIO({}(2**26)); stream.write(b'x' * 2**26)"
    assert faults(fill.format("zeros")) < faults(fill.format("bytes")) * 0.7
