"""Child processes of tests: cheap to start, and free to be killed."""

import ctypes
import functools
import multiprocessing
import os
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch

# Forked from a process that has one thread and has imported everything.
CONTEXT = multiprocessing.get_context("forkserver")
_ROOT = str(Path(__file__).resolve().parents[2])
_PATIENCE = 120


@functools.cache
def _serve():
    # torch imports the second when vmap is first called, which takes seconds
    modules = ["tests.faults.jobs", "torch._dynamo", __name__]
    CONTEXT.set_forkserver_preload(modules)
    # its sys.path is not yet ours when it imports these
    path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        forkserver.ensure_running()


def _run(connection, function, args):
    torch.set_num_threads(1)
    connection.send("started")
    try:
        connection.send((function(*args), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))


def start(function, *args):
    """Start a call in a child; return the process and the connection to it."""
    _serve()
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_run, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(_PATIENCE)
    assert ours.recv() == "started"
    return process, ours


def call(function, *args):
    """Return what a function returns in a child; fail as it does there."""
    process, connection = start(function, *args)
    assert connection.poll(_PATIENCE), "it hangs"
    found, error = connection.recv()
    process.join()
    assert error is None, error
    return found


def killed(delay, function, *args):
    """Kill a call after as many seconds; return whether it was still at it."""
    process, _ = start(function, *args)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode < 0


def without_privileges():
    """Give up root's right to write where the permissions of a file forbid it."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0
