"""Zero-shot tasks from files: prompts and accuracies as lm-evaluation-harness has them, without it."""

from lowbit.evals.tasks.accuracy import Metric, TaskResult, evaluate_task
from lowbit.evals.tasks.item import Item, read_items
from lowbit.evals.tasks.task import TASKS, Task, task

__all__ = ["TASKS", "Item", "Metric", "Task", "TaskResult", "evaluate_task", "read_items", "task"]
