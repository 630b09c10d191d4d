from __future__ import annotations

import subprocess
import sys
import time

from unsloth_accel.callbacks.signs_of_work import Signs, cpu_seconds, own_signs


def test_what_is_work() -> None:
    before = Signs(10.0, 1e6)
    assert Signs(10.5, 1e6).working(before, 5.0)
    assert not Signs(10.1, 1e6).working(before, 5.0)
    assert Signs(10.0, 2e6).transferring(before, 5.0)
    assert not Signs(10.0, 1.1e6).transferring(before, 5.0)


def test_a_childs_work_counts_also_when_it_has_ended() -> None:
    code = "x = 0\nwhile x >= 0: x += 1"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        first, deadline = own_signs().cpu, time.monotonic() + 120
        while cpu_seconds(process.pid) < 0.3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert own_signs().cpu - first >= 0.3
        process.kill()
    assert own_signs().cpu - first >= 0.3
    assert cpu_seconds(process.pid) == 0.0
