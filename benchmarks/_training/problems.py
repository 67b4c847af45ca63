"""All problems, in the order in which they are run."""

from collections.abc import Callable

from _training import digits, neural_gpu, quadratic, sequences, text
from _training.tasks import Problem

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits.problem,
    "quadratic": quadratic.problem,
    "adding": sequences.adding,
    "copy": sequences.copy,
    "characters_rnn": text.recurrent,
    "characters_transformer": text.transformer,
    "neural_gpu": neural_gpu.problem,
}
# It compiles fast: `--quick` runs every method on it.
QUICK_PROBLEM = "quadratic"
