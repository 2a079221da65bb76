"""What a model is worth: how well it predicts text, what it knows, and how far it is from another model."""

from lowbit.evals.compare import Agreement, compare_logits, compare_models
from lowbit.evals.paired import PairedTest, paired_test
from lowbit.evals.perplexity import Evaluation, evaluate

__all__ = ["Agreement", "Evaluation", "PairedTest", "compare_logits", "compare_models", "evaluate", "paired_test"]
