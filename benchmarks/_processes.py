"""Time of calls, memory of processes; reads /proc, so Linux only."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import sklearn
import torch


def seconds(use, *args, clock=time.process_time, **options):
    """Return the seconds that a call takes, and what it returns."""
    start = clock()
    found = use(*args, **options)
    return clock() - start, found


def wall_seconds(use, *args, **options):
    return seconds(use, *args, clock=time.perf_counter, **options)


def in_turns(calls, n_rounds, clock=time.process_time):
    """Time calls in turns; return seconds (n_rounds, n_calls)."""
    return np.array(
        [[seconds(use, clock=clock)[0] for use in calls] for _ in range(n_rounds)]
    )


def machine():
    """Return the processor and the versions that seconds depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line for line in lines if line.startswith("model name"))
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    return f"{model.partition(':')[2].strip()}, {versions}"


def product(size=1024, device="cpu"):
    """Return the yardstick: a call that multiplies two matrices."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(size, size, generator=generator).to(device)
    out = torch.empty_like(square)
    return lambda: torch.mm(square, square, out=out)


def in_own_process(function, *arguments):
    """Call a function in a new process, which shares no memory with others."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


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
