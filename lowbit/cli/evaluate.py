"""`eval`: how well a model predicts texts, what it knows, and how far it is from another one."""

import argparse
import json
import sys
from pathlib import Path

from lowbit.atomic import write_atomically
from lowbit.cli import predictors
from lowbit.cli.eval_tasks import evaluate_tasks, open_tasks, task_record, task_table
from lowbit.cli.eval_texts import cut_of, evaluate_texts, evaluation_table, fidelity_table, text_record
from lowbit.cli.sources import kind_of
from lowbit.cli.usage import UsageError, check_output
from lowbit.data import TextTokenizer
from lowbit.evals.predictor import Predictor
from lowbit.strict_json import finite


def run(arguments: argparse.Namespace) -> int:
    """Evaluates on each text and task, prints tables, and writes JSON if asked."""
    if not arguments.data and not arguments.tasks:
        raise UsageError("nothing to evaluate on", "add --data FILE ... or --tasks NAME=FILE ...")
    if arguments.items is not None and not arguments.tasks:
        raise UsageError("--items is for --tasks", "leave it out, or use --windows for texts")
    of_texts = ("windows", "length", "stride", "protocol", "within_documents")
    if not arguments.data and (unread := [name for name in of_texts if getattr(arguments, name)]):
        flag = f"--{unread[0].replace('_', '-')}"
        raise UsageError(f"{flag} is for --data", "leave it out, or add --data FILE")
    if arguments.against is not None and (arguments.stride or arguments.within_documents):
        raise UsageError(
            "--against compares predictions that see all of a window, each once",
            "leave out --stride and --within-documents",
        )
    if arguments.output is not None:
        check_output(Path(arguments.output), arguments.overwrite)
    items = open_tasks(arguments)
    model = predictors.from_arguments(arguments)
    if arguments.data and not arguments.within_documents:
        _say_if_trained_within_documents(arguments.source)
    tokenizer = _tokenizer(model)
    other = None
    if arguments.against is not None:
        other = predictors.from_source(arguments.against)
        _check_alike(arguments, tokenizer, model, other)
    texts = evaluate_texts(arguments, model, other, tokenizer) if arguments.data else {}
    tasks = evaluate_tasks(items, model, other, arguments.batch)
    tables = []
    if texts:
        tables.append(evaluation_table({path: result.evaluation for path, result in texts.items()}))
        tables += [] if other is None else [f"against {arguments.against}:\n{fidelity_table(texts)}"]
    if tasks:
        tables.append(task_table(tasks))
    print("\n\n".join(tables))
    if arguments.output is not None:
        record = {
            "source": arguments.source,
            "backend": model.backend,
            "method": arguments.method,
            "bits": None if arguments.bits is None else float(arguments.bits),
            "granularity": arguments.granularity,
            "scale_init": arguments.scale_init,
            "activations": arguments.activations,
            "kv_bits": arguments.kv_bits,
            "against": arguments.against,
            "protocol": arguments.protocol,
            "length": cut_of(arguments, model).length if texts else None,
            "stride": arguments.stride,
            "within_documents": arguments.within_documents,
            "texts": {path: text_record(result) for path, result in texts.items()},
            "tasks": {name: task_record(comparison) for name, comparison in tasks.items()},
        }
        text = json.dumps(finite(record), indent=2, allow_nan=False) + "\n"
        write_atomically(Path(arguments.output), text.encode(), UsageError)
    return 0


def _tokenizer(model: Predictor) -> TextTokenizer | None:
    if "tokenizer.json" not in model.tokenizer_files:
        return None
    return TextTokenizer.load(model.tokenizer_files, vocab_size=model.cfg.vocab_size)


def _say_if_trained_within_documents(source: str) -> None:
    if kind_of(source) != "run":
        return
    from lowbit.train.run_folder import RunFolder

    config, _, _ = RunFolder(Path(source).expanduser()).read()
    if not config.data.attend_across_documents:
        print(
            f"lowbit: {source} was trained with data.attend_across_documents=false, and without --within-documents "
            "its tokens see across documents here",
            file=sys.stderr,
        )


def _check_alike(
    arguments: argparse.Namespace, tokenizer: TextTokenizer | None, model: Predictor, other: Predictor
) -> None:
    """Token by token, only models of one vocabulary can be compared; tasks may have two."""
    if not arguments.data:
        return
    theirs = _tokenizer(other)
    same = tokenizer is None or theirs is None or tokenizer.fingerprint() == theirs.fingerprint()
    if model.cfg.vocab_size != other.cfg.vocab_size or not same:
        raise UsageError(
            f"{arguments.source} and {arguments.against} have different tokens", "compare them by --tasks alone"
        )
