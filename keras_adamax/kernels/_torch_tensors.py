"""What a step is about, as torch tensors: lists with an entry a variable."""

from dataclasses import dataclass, field
from typing import Any

import torch

from keras_adamax.kernels import DenseStep

# Of a subclass, such as a distributed tensor, only torch knows the memory.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


@dataclass
class Tensors:
    """Some of the variables of a step.

    Attributes:
        indices: Which of the optimizer's variables they are.
        gradients: Dense, of any float dtype and any layout.
        weights: To be updated in place; contiguous, as are the next two.
        momentums: First moment of each.
        norms: Infinity norm of each.
    """

    indices: list[int] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    momentums: list[torch.Tensor] = field(default_factory=list)
    norms: list[torch.Tensor] = field(default_factory=list)

    def add(
        self,
        index: int,
        gradient: torch.Tensor,
        weight: torch.Tensor,
        momentum: torch.Tensor,
        norm: torch.Tensor,
    ) -> None:
        """Adds a variable."""
        self.indices.append(index)
        self.gradients.append(gradient)
        self.weights.append(weight)
        self.momentums.append(momentum)
        self.norms.append(norm)


def sort(step: DenseStep) -> tuple[dict[torch.device, Tensors], list[int]]:
    """The tensors of a step that can be updated in place, by their device.

    Returns:
        The tensors, and the positions in `step` of those that are no plain
        tensors, or lie in memory in another order than their elements.
    """
    plain: dict[torch.device, Tensors] = {}
    others = []
    for position, (index, gradient, *variables) in enumerate(
        zip(
            step.indices,
            step.gradients,
            step.weights,
            step.momentums,
            step.norms,
            strict=True,
        )
    ):
        weight, momentum, norm = (variable.value for variable in variables)
        device = weight.device
        if (
            type(gradient) in _PLAIN
            and type(weight) in _PLAIN
            and type(momentum) in _PLAIN
            and type(norm) in _PLAIN
            and gradient.layout is torch.strided
            and not gradient.is_neg()
            and gradient.is_floating_point()
            and gradient.shape == weight.shape
            and weight.is_contiguous()
            and momentum.is_contiguous()
            and norm.is_contiguous()
            and gradient.device == device
            and momentum.device == device
            and norm.device == device
        ):
            if device not in plain:
                plain[device] = Tensors()
            plain[device].add(index, gradient, weight, momentum, norm)
        else:
            others.append(position)
    return plain, others


@dataclass(frozen=True)
class Numbers:
    """The scalars of a step on the host, exact in the state's dtype."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    clip_multiplier: float
    clip_epsilon: float
    bias_correction: float | None
    one_minus_beta_1: float


def numbers(step: DenseStep) -> Numbers:
    """The scalars of a step whose variables are in the host's memory."""
    values: Any = step.hyperparameters(step.learning_rate, step.dtype)
    return Numbers(
        *[None if v is None else v.item() for v in values],
        one_minus_beta_1=(1.0 - values.beta_1).item(),
    )


def not_clipped(step: DenseStep) -> list[bool] | None:
    """For each of the optimizer's variables; `None` where none is clipped."""
    if step.exclusions is None:
        return None
    return [flag > 0 for flag in step.exclusions.value.tolist()]

