"""What a process cost, read from /proc: CPU seconds and the most memory it ever held."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
#: utime, stime, cutime, cstime in /proc/<pid>/stat, counted behind the command's name.
_TIMES = slice(11, 15)


def cpu_seconds(pid: int) -> float:
    """User and system time of `pid` and of the children it has waited for; in steps of 10 ms."""
    return parse_cpu_seconds(Path(f"/proc/{pid}/stat").read_text())


def parse_cpu_seconds(stat: str) -> float:
    """The same from the text of /proc/<pid>/stat; a command's name may hold blanks and brackets."""
    behind_name = stat[stat.rindex(")") + 2 :].split()
    return sum(int(ticks) for ticks in behind_name[_TIMES]) / _TICKS_A_SECOND


def peak_rss_mb(pid: int | str = "self") -> float:
    """The high-water mark of resident memory, in MB of 1,000,000 bytes."""
    return parse_peak_rss_mb(Path(f"/proc/{pid}/status").read_text())


def parse_peak_rss_mb(status: str) -> float:
    """The same from the text of /proc/<pid>/status."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("/proc/<pid>/status has no VmHWM")


def stop(process: subprocess.Popen[bytes] | subprocess.Popen[str], patience: float = 30) -> None:
    """Ask it to end; one that does not is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(patience)
