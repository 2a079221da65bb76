"""Training text without data: a model writes it on its devices, filters keep what is worth learning from."""

from lowbit.synthesis.filters import REASONS, Filters
from lowbit.synthesis.job import Progress, synthesize
from lowbit.synthesis.recipe import Recipe

__all__ = ["REASONS", "Filters", "Progress", "Recipe", "synthesize"]
