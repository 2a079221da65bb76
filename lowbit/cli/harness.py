"""`python -m lowbit.cli.harness ...`: the command line of lm-evaluation-harness, with lowbit's models in it.

    python -m lowbit.cli.harness run --model lowbit --model_args source=runs/w2 --tasks arc_easy,piqa

`--model_args` takes source, backend, batch_size, method, bits, granularity and scale_init, as `eval` has them as flags.
"""

import argparse

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from lowbit.cli import predictors
from lowbit.cli.usage import UsageError
from lowbit.evals.harness import HarnessModel

NAME = "lowbit"


class HarnessSource(HarnessModel):
    """A model that the harness makes of its `--model_args`; all of them are those of `python -m lowbit eval`.

    Raises:
      UsageError: arguments that are not for this kind of source, or a batch size that is no number.
      LowbitError: the source is missing or damaged.
    """

    def __init__(
        self,
        source: str,
        backend: str | None = None,
        batch_size: int | str = 8,
        method: str | None = None,
        bits: float | None = None,
        granularity: str | None = None,
        scale_init: str | None = None,
        activations: str | None = None,
        kv_bits: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        if not str(batch_size).isdecimal():
            raise UsageError(f"a batch size of {batch_size!r}", "give a number")
        if device is not None or max_batch_size is not None:
            raise UsageError("device and max_batch_size are not for this model", "leave them out: jax chooses devices")
        arguments = argparse.Namespace(
            source=source,
            backend=backend,
            verify=True,
            method=method,
            bits=None if bits is None else str(bits),
            granularity=None if granularity is None else str(granularity),
            scale_init=scale_init,
            activations=activations,
            kv_bits=None if kv_bits is None else str(kv_bits),
        )
        super().__init__(predictors.from_arguments(arguments), int(batch_size))


def register() -> None:
    """Makes `--model lowbit` known to the harness."""
    register_model(NAME)(HarnessSource)


if __name__ == "__main__":
    register()
    cli_evaluate()
