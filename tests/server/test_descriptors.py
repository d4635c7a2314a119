"""Open files: as many as the system allows, and a part that no connection can take."""

import resource
import subprocess
import sys

import pytest
from privet.server.descriptors import raised_limit, shares

LOWERED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
from privet.server.descriptors import raised_limit
print(raised_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("limit", [16, 128, 1024, 65536, 2**20])
def test_ports_leave_files_to_the_server(limit: int) -> None:
    members, strangers = shares(limit)
    assert members > strangers > 0
    assert limit - members - strangers == min(256, limit // 4)


def test_limit_is_raised_to_what_the_system_allows() -> None:
    told = subprocess.run([sys.executable, "-c", LOWERED], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["128", "128", "128"]


def test_limit_that_is_raised_stays() -> None:
    assert raised_limit() == raised_limit() <= 2**20
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (raised_limit(), resource.RLIM_INFINITY)
