"""Time of calls, memory of processes; reads /proc, so Linux only."""

import json
import subprocess
import sys
import time
from pathlib import Path


def seconds(use, *args, clock=time.process_time, **options):
    """Return the seconds that a call takes, and what it returns."""
    start = clock()
    found = use(*args, **options)
    return clock() - start, found


def in_own_process(module, *arguments):
    """Run a module in a new process; return what it prints last, as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def resident_bytes(peak=False):
    """Return the resident memory of this process, or its peak."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith(field))
    return int(kibibytes) * 1024


def peak_from_here():
    """Forget the peak; return a function that says how far it rose since, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes()
    return lambda: resident_bytes(peak=True) - before
