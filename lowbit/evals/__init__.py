"""What a model is worth: how well it predicts text, and how far it is from another model."""

from lowbit.evals.compare import Agreement, compare_logits, compare_models
from lowbit.evals.perplexity import Evaluation, evaluate

__all__ = ["Agreement", "Evaluation", "compare_logits", "compare_models", "evaluate"]
