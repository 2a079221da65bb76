"""Processes that measure on request: each request and each answer is a line of JSON.

What is compared runs in processes of its own, so that peak memory is its own and the parent can take turns.
"""

import contextlib
import json
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from lowbit.errors import KernelError


class Child:
    """A running child; to be used as a context.

    Args:
      command: its command line.

    Raises:
      KernelError: it ends before it answers.
    """

    def __init__(self, command: Sequence[str]):
        self._command = list(command)
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns its answer."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise KernelError(
                f"{' '.join(self._command)} ended with status {self._process.wait()} at {request}",
                "look at what it wrote to stderr",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
