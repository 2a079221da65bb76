"""`export`: a trained or rounded model to a packed file."""

import argparse
from pathlib import Path

from lowbit import formats
from lowbit.cli import quantized
from lowbit.cli.packed_file import bits_fields
from lowbit.cli.tables import fields
from lowbit.cli.usage import check_output
from lowbit.export import pack_model


def run(arguments: argparse.Namespace) -> int:
    """Packs, writes, and prints what the file costs."""
    output = Path(arguments.output).expanduser()
    check_output(output, arguments.overwrite)
    model = quantized.from_arguments(arguments)
    meta = model.origin.to_meta()
    packed = pack_model(model.cfg, model.params, model.rules, model.state, model.tokenizer_files, meta)
    formats.write(output, packed, overwrite=arguments.overwrite)
    print(f"{model.origin.path} -> {output}")
    print(fields(bits_fields(formats.summarize(packed, output.stat().st_size))))
    return 0
