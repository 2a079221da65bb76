"""Joining the processes of one run, each with devices of its own, and what is said when one of them is lost."""

import atexit
import re
import subprocess
import sys
from typing import Any

import jax

from lowbit.errors import ProcessError

CONNECT_SECONDS = 300
"""How long the processes of a run may take to find each other."""

LOST_SECONDS = 60
"""How long a process may be silent before the others end: what a run hangs at most when one dies."""

# When a run has lost a process, jax's runtime ends the others from a thread in C++: none of them can say a word. So
# another small process reads from each as long as it lives, and speaks if it ends without having said goodbye.
_WITNESS = """
import signal, sys
for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(ignored, signal.SIG_IGN)
if not sys.stdin.read():
    sys.stderr.write(sys.argv[1])
"""


def connect(coordinator: str = "", processes: int = 0, index: int = 0, *, lost_after: int = LOST_SECONDS) -> None:
    """Joins the processes of a run; to be called before anything else of jax.

    Without a coordinator the cluster says who belongs together: SLURM, Open MPI, Kubernetes (GKE) and TPU pods do. When
    a process is lost later, the others end within `lost_after` seconds and say so on stderr.

    Args:
      coordinator: HOST:PORT at which all reach the process of index 0; "" asks the cluster.
      processes: how many there are.
      index: of this one, from 0.
      lost_after: seconds of silence after which a process counts as lost.

    Raises:
      ProcessError: no cluster to ask, a coordinator that is no HOST:PORT, an index that none of the processes has, or a
        process that has joined a run before.
    """
    if jax.distributed.is_initialized():
        raise ProcessError("this process belongs to a run already", "connect once, where the program begins")
    if coordinator:
        _check(coordinator, processes, index)
    # What is told explicitly is all that counts: a cluster around it would also choose this process's devices.
    given: dict[str, Any] = {}
    if coordinator:
        given = {"coordinator_address": coordinator, "num_processes": processes, "process_id": index}
        given["cluster_detection_method"] = "deactivate"
    witness = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WITNESS, f"lowbit: error: {_lost(lost_after)}\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=lost_after,
            shutdown_timeout_seconds=lost_after,
        )
    except (ValueError, TypeError) as error:
        witness.communicate(b"goodbye")
        raise ProcessError(
            f"nothing here says which processes make up the run ({error})",
            "give each process --coordinator HOST:PORT --processes N --process-index I",
        ) from error
    except RuntimeError as error:
        witness.communicate(b"goodbye")
        raise ProcessError(f"this process cannot join a run: {error}", "connect before anything else of jax") from error
    atexit.register(witness.communicate, b"goodbye")


def _check(coordinator: str, processes: int, index: int) -> None:
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d+", coordinator):
        raise ProcessError(
            f"coordinator {coordinator!r} is no HOST:PORT", "give the address of the process with index 0: node0:1234"
        )
    if not 0 <= index < processes:
        raise ProcessError(f"process {index} of {processes} does not exist", "number the processes from 0")


def _lost(seconds: int) -> ProcessError:
    return ProcessError(
        "this process was ended from outside, or because another process of the run is lost, silent for "
        f"{seconds} s, or never came",
        "look for the first error among the processes, then start all of them again with --resume",
    )
