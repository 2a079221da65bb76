"""Errors a user can cause, each with its cause and its mend.

Anything that goes wrong because of a config, a file or a command line raises a subclass of `LowbitError`
before any work is done. The command line prints `str(error)` without a traceback; a traceback therefore
always means a bug in lowbit itself.
"""

import difflib
from collections.abc import Iterable


class LowbitError(Exception):
    """A mistake that the user can mend.

    Args:
      cause: what is wrong, naming the offending value and where it stands.
      mend: what to do about it, in the imperative.
    """

    def __init__(self, cause: str, mend: str):
        super().__init__(cause, mend)
        self.cause = cause
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.cause}\n  -> {self.mend}"


class ConfigError(LowbitError):
    """A config file, variant or override that does not say what it must."""


class QuantizerError(LowbitError):
    """Unknown bits, an unknown method or scale choice, or a shape the quantizer cannot divide into groups."""


class RuleError(LowbitError):
    """A rule table that leaves a parameter uncovered or holds a rule that nothing uses."""


class AllocationError(LowbitError):
    """A budget that no widths keep, or a record of widths that cannot be read."""


class ModelError(LowbitError):
    """A model folder, hub name or GGUF file that is missing, incomplete or of a family not supported."""


class TokenizerError(LowbitError):
    """A tokenizer that is missing or does not belong to the model."""


class DataError(LowbitError):
    """Text or tokens that are missing, empty, too short, or outside of the model's vocabulary."""


class CheckpointError(LowbitError):
    """A checkpoint that is missing, unreadable, or of another config."""


class NonFiniteError(LowbitError):
    """Loss, gradient or parameters became infinite or NaN."""


class DiskFullError(LowbitError):
    """A disk without room for what a run has to write."""


class MemoryShortError(LowbitError):
    """A machine with less memory than the work takes."""


class ProcessError(LowbitError):
    """Processes of one run that do not find each other, or lost one."""


class RunFolderError(LowbitError):
    """A run folder that exists, or cannot be written."""


class LockedError(LowbitError):
    """A folder that another process is writing to, or nobody may."""


class FormatError(LowbitError):
    """A packed file that is truncated, altered, of another version, or no packed file at all."""


class KernelError(LowbitError):
    """Compiled kernels that are missing and cannot be made, or that the system gives no room."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns `did you mean 'x'?`, or the list of choices where nothing is near."""
    names = sorted(str(c) for c in choices)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "choose from " + ", ".join(names)
