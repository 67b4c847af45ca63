"""Train the network that this optimizer was made for: a Neural GPU.

A diagonal Neural GPU (Freivalds & Liepins 2017, arXiv 1702.08727, section 3)
learns to multiply binary numbers from examples of at most 41 symbols, and is
tested on 401. Training it is spiky: that is why its authors clip every
gradient element by its own past.

    python examples/neural_gpu.py --quick
    python examples/neural_gpu.py --seed 0 --output neural_gpu_output
    python examples/neural_gpu.py --optimizer adagc --output other_output
    python examples/neural_gpu.py --plot neural_gpu_output other_output

`--quick` takes about a minute, a whole run about an hour on two CPU cores. A
run that was stopped goes on where it was when it is started again with the
same `--output`. It needs Keras's torch backend: the network is as deep as its
input is long, which no compiler likes.

Numbers are written with the lowest digit first. The recipe is that of the
authors' own program (LUMII-Syslab/DNGPU), with one difference: the examples
are drawn afresh at every step, not from a fixed set.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Keras reads its backend when it is imported.
os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from keras import ops
from torch.nn import functional

import keras_adamax

PADDING, ZERO, ONE, TIMES = range(4)
SYMBOLS = 4
CLASSES = 3  # padding, 0 and 1
KEPT_BY_DROPOUT = 0.9
SATURATION_LIMIT = 0.9
GRADIENT_NOISE = 1e-4
LOSSES_EVERY = 200  # steps between two looks at the loss
LEARNED = 0.99  # of the digits, at two consecutive checks


@dataclass(frozen=True)
class Plan:
    """What is trained and how long.

    Attributes:
        maps: Channels of the network.
        bins: Lengths of the sequences that are trained.
        batch_size: Sequences of each length in a step.
        steps: At most.
        check_every: Steps between two checks.
        check_length: Of the sequences that decide whether it has learned.
        check_sequences: How many they are.
    """

    maps: int = 96
    bins: tuple[int, ...] = (8, 12, 16, 20, 25, 28, 31, 36, 41)
    batch_size: int = 32
    steps: int = 2000
    check_every: int = 50
    check_length: int = 401
    check_sequences: int = 128


QUICK = Plan(
    maps=24, bins=(4, 6, 8), steps=1000, check_length=8, check_sequences=256
)


class Multiplications:
    """Draws products of binary numbers.

    Args:
        bins: Lengths of the sequences that are trained.
    """

    def __init__(self, bins: Sequence[int]) -> None:
        self.bins = tuple(bins)

    def batch(
        self, rng: np.random.Generator, bin_: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Examples for training, one in twenty of a shorter bin."""
        index = self.bins.index(bin_)
        examples = []
        for _ in range(count):
            of = index
            if index and rng.random() < 0.05:
                of = int(rng.integers(index))
            shortest = self.bins[of - 1] if of else 0
            # A sequence of two numbers of k digits has 2 k + 1 symbols. Each
            # pair of short numbers is as likely as each other.
            digits = np.arange(shortest // 2, (self.bins[of] - 1) // 2 + 1)
            digits = digits[2 * digits + 1 > shortest]
            pairs = np.minimum(1e4, 4.0**digits)
            k = int(rng.choice(digits, p=pairs / pairs.sum()))
            examples.append(self._example(rng, k, bin_))
        x, y = zip(*examples, strict=True)
        return np.stack(x), np.stack(y)

    def test(
        self, rng: np.random.Generator, length: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Examples of the largest numbers that fit into a length."""
        examples = [
            self._example(rng, (length - 1) // 2, length) for _ in range(count)
        ]
        x, y = zip(*examples, strict=True)
        return np.stack(x), np.stack(y)

    @staticmethod
    def _example(
        rng: np.random.Generator, k: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Two random numbers of `k` digits and their product, padded."""
        first, second = rng.integers(2, size=(2, k))
        product = _to_number(first) * _to_number(second)
        x = np.full(length, PADDING)
        x[:k] = ZERO + first
        x[k] = TIMES
        x[k + 1 : 2 * k + 1] = ZERO + second
        y = np.full(length, PADDING)
        y[: 2 * k + 1] = [ZERO + (product >> i & 1) for i in range(2 * k + 1)]
        return x, y


def _to_number(digits: np.ndarray) -> int:
    return int("0" + "".join(str(d) for d in digits[::-1]), 2)


class NeuralGPU(keras.Model):
    """A diagonal convolutional gated recurrent unit, applied `length` times.

        r = hard_sigmoid(conv(s) + 0.5)
        g = hard_sigmoid(conv(s) + 0.7)
        c = hard_tanh(conv(r s))
        s <- g shift(s) + (1 - g) c

    `shift` moves a third of the maps by one place to the left and a third to
    the right. Section 3 of the paper.

    Args:
        maps: Channels of the state.
    """

    def __init__(self, maps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.maps = maps
        shape = (3, maps, maps)
        self.embedding = self._kernel("embedding", (SYMBOLS, maps))
        self.reset_kernel = self._kernel("reset", shape)
        self.gate_kernel = self._kernel("gate", shape)
        self.candidate_kernel = self._kernel("candidate", shape)
        self.output_kernel = self._kernel("output", (maps, CLASSES))
        self.embedding_bias = self._bias("embedding_bias", maps)
        self.reset_bias = self._bias("reset_bias", maps)
        self.gate_bias = self._bias("gate_bias", maps)
        self.candidate_bias = self._bias("candidate_bias", maps)
        self.output_bias = self._bias("output_bias", CLASSES)
        self.built = True

    def _kernel(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        return self.add_weight(
            shape=shape, initializer="glorot_uniform", name=name
        )

    def _bias(self, name: str, size: int) -> keras.Variable:
        return self.add_weight(shape=(size,), initializer="zeros", name=name)

    def call(
        self, tokens: torch.Tensor, training: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits for each place, and the cost of saturated units.

        The convolutions are products with the state beside its neighbours,
        and both gates are one product: that is fastest on a CPU. For
        PyTorch's own hard sigmoid, which is as wide as from -3 to 3, the
        gates are computed three times as large.
        """
        batch, length = tokens.shape
        mask = (tokens != PADDING)[..., None].to(torch.float32)
        rows = (3 * self.maps, self.maps)
        kernel = 3.0 * torch.cat(
            [
                self.reset_kernel.value.reshape(rows),
                self.gate_kernel.value.reshape(rows),
            ],
            dim=1,
        )
        bias = 3.0 * torch.cat(
            [self.reset_bias.value + 0.5, self.gate_bias.value + 0.7]
        )
        candidate_kernel = self.candidate_kernel.value.reshape(rows)

        x = self.embedding.value[tokens] + self.embedding_bias.value
        cost = length * _saturation(x)
        state = self._nonlinear(x, training) * mask
        for _ in range(length):
            beside, shifted = _Neighbours.apply(state, True)
            x = functional.linear(beside, kernel.T, bias)
            if training:
                cost = cost + _saturation(x, scale=3.0)
            reset, gate = functional.hardsigmoid(x).chunk(2, dim=-1)
            beside, _ = _Neighbours.apply(reset * state, False)
            x = functional.linear(
                beside, candidate_kernel.T, self.candidate_bias.value
            )
            if training:
                cost = cost + _saturation(x)
            candidate = self._nonlinear(x, training)
            state = torch.lerp(candidate, shifted, gate) * mask
        logits = state @ self.output_kernel.value + self.output_bias.value
        return logits, cost / (length**2 * batch)

    @staticmethod
    def _nonlinear(x: torch.Tensor, training: bool) -> torch.Tensor:
        """The hard tangent, with dropout."""
        return functional.dropout(
            functional.hardtanh(x), 1.0 - KEPT_BY_DROPOUT, training
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "maps": self.maps}


class _Neighbours(torch.autograd.Function):
    """Each place beside that before it (first) and after it (last).

    Also the shifted state, if it `shifts`: two thirds of its maps are parts
    of that. The gradient is written by hand because PyTorch's own adds arrays
    of zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, state: torch.Tensor, shifts: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.set_materialize_grads(False)
        padded = functional.pad(state, (0, 0, 1, 1))
        before, after = padded[:, :-2], padded[:, 2:]
        beside = torch.cat([before, state, after], dim=-1)
        if not shifts:
            return beside, None
        maps = state.shape[-1]
        third = maps // 3
        still = maps - 2 * third
        shifted = torch.cat(
            [
                state[..., :still],
                before[..., still : still + third],
                after[..., still + third :],
            ],
            dim=-1,
        )
        return beside, shifted

    @staticmethod
    def backward(
        ctx: Any, of_beside: torch.Tensor, of_shifted: torch.Tensor | None
    ) -> tuple[torch.Tensor, None]:
        maps = of_beside.shape[-1] // 3
        before, gradient, after = of_beside.split(maps, dim=-1)
        gradient = gradient.clone()
        gradient[:, :-1] += before[:, 1:]
        gradient[:, 1:] += after[:, :-1]
        if of_shifted is None:
            return gradient, None
        third = maps // 3
        still = maps - 2 * third
        moved = slice(still, still + third), slice(still + third, maps)
        gradient[..., :still] += of_shifted[..., :still]
        gradient[:, :-1, moved[0]] += of_shifted[:, 1:, moved[0]]
        gradient[:, 1:, moved[1]] += of_shifted[:, :-1, moved[1]]
        return gradient, None


def _saturation(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """How far units are beyond where their nonlinearity begins to be flat."""
    beyond = functional.softshrink(x, SATURATION_LIMIT * scale)
    return torch.linalg.vector_norm(beyond, 1) / scale


@keras.saving.register_keras_serializable("neural_gpu")
class PaperBeta2(keras.optimizers.schedules.LearningRateSchedule):
    """`beta_2` of the authors: `1 - max(0.0005, 0.01 * 0.5^(step / 2000))`."""

    def __call__(self, step: Any) -> torch.Tensor:
        halvings = ops.cast(step, "float32") / 2000.0
        return 1.0 - ops.maximum(0.0005, 0.01 * ops.power(0.5, halvings))

    def get_config(self) -> dict[str, Any]:
        return {}


class ClippedAdam(keras.optimizers.Adam):
    """Adam that multiplies each variable's gradient by a factor of its norm.

    `factors` gives them; `past` has a number of each variable for it.
    """

    initial_past = 0.0

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)
        self.past = self.add_variable(
            shape=(len(variables),),
            initializer=keras.initializers.Constant(self.initial_past),
            name="past",
        )

    def apply(
        self,
        grads: Sequence[torch.Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        if trainable_variables is not None and not self.built:
            self.build(trainable_variables)
        factors = self.factors(ops.stack([ops.norm(g) for g in grads]))
        clipped = [g * f for g, f in zip(grads, factors, strict=True)]
        super().apply(clipped, trainable_variables)

    def factors(self, size: torch.Tensor) -> torch.Tensor:
        """What each gradient is multiplied by; goes on with `past`.

        Args:
            size: The norms of the gradients.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable("neural_gpu")
class AdaGC(ClippedAdam):
    """Adam with AdaGC (arXiv 2502.11034), algorithm 1, its authors' numbers.

    Each variable's norm is held to 1.04 times the mean of its own past, after
    a warm-up of 100 steps with `global_clipnorm=1`.
    """

    initial_past = float("inf")

    def factors(self, size: torch.Tensor) -> torch.Tensor:
        past = ops.convert_to_tensor(self.past)
        if int(self.iterations) < 100:
            total = ops.sqrt(ops.sum(size**2))
            factor = ops.minimum(1.0, 1.0 / (total + 1e-6))
            self.past.assign(ops.minimum(past, factor * size))
            return ops.full(size.shape, factor)
        limit = 1.04 * past
        self.past.assign(0.99 * past + 0.01 * ops.minimum(size, limit))
        return ops.where(size > limit, limit / (size + 1e-6), 1.0)


@keras.saving.register_keras_serializable("neural_gpu")
class PerTensorClip(ClippedAdam):
    """Adam with what the authors of the paper went on to (RSE, RRU).

    A variable's gradient has a norm of at most
    `3 sqrt(sum(v) / (1 - beta_2^t)) + 0.01`.
    """

    def factors(self, size: torch.Tensor) -> torch.Tensor:
        # The sum of `v` over a variable is `past`: `v` is the mean of the
        # squares of just these clipped gradients.
        correction = 1.0 - self.beta_2 ** (int(self.iterations) + 1)
        limit = 3.0 * ops.sqrt(self.past / correction) + 0.01
        factors = limit / ops.maximum(size, limit)
        squares = (factors * size) ** 2
        self.past.assign(
            self.beta_2 * self.past + (1.0 - self.beta_2) * squares
        )
        return factors


OPTIMIZERS = {
    "adamax_clipped": lambda rate: keras_adamax.AdamaxClipped(
        rate, beta_2=PaperBeta2(), epsilon=1e-8
    ),
    "adamax": lambda rate: keras_adamax.AdamaxClipped(
        rate, beta_2=PaperBeta2(), epsilon=1e-8, clip_gradients=False
    ),
    "adam_global_clipnorm": lambda rate: keras.optimizers.Adam(
        rate, global_clipnorm=1.0
    ),
    "adagc": AdaGC,
    "per_tensor": PerTensorClip,
}


class Training:
    """A run, which can be stopped at any time and goes on from its folder.

    Everything random comes from the seed and the number of the step.

    Args:
        plan: What is trained.
        optimizer: A name in `OPTIMIZERS`.
        seed: Of weights, examples, dropout and noise.
        folder: For `progress.json` and the model.
    """

    def __init__(
        self, plan: Plan, optimizer: str, seed: int, folder: Path
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.folder = folder
        self.data = Multiplications(plan.bins)
        self.rate = 0.01 * 48 / plan.maps
        self.progress: dict[str, Any] = {
            "optimizer": optimizer,
            "seed": seed,
            "plan": {**vars(plan), "bins": list(plan.bins)},
            "torch": torch.__version__,
            "model": None,
            "step": 0,
            "seconds": 0.0,
            "saturation_weight": 1e-3,
            "sums": [0.0, 0.0],  # of loss and saturation cost
            "losses": [],
            "checks": [],
        }
        if (folder / "progress.json").exists():
            self._load()
        else:
            keras.utils.set_random_seed(seed)
            self.model = NeuralGPU(plan.maps)
            self.model.compile(optimizer=OPTIMIZERS[optimizer](self.rate))

    def _load(self) -> None:
        found = json.loads((self.folder / "progress.json").read_text())
        for name in ("optimizer", "seed", "plan"):
            if found[name] != self.progress[name]:
                raise SystemExit(
                    f"{self.folder} has another run: its {name} is "
                    f"{found[name]}. Choose another `--output`."
                )
        self.progress = found
        self.model = keras.saving.load_model(
            self.folder / found["model"],
            custom_objects={"NeuralGPU": NeuralGPU},
        )
        print(f"Going on from step {found['step']} in {self.folder}.")

    def save(self) -> None:
        """Writes the model, then what names it: one of both is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.progress["model"]
        name = f"step_{self.progress['step']}.keras"
        self.model.save(self.folder / name)
        self.progress["model"] = name
        text = json.dumps(self.progress, indent=1)
        new = self.folder / "progress.json.new"
        new.write_text(text + "\n")
        os.replace(new, self.folder / "progress.json")
        if before and before != name:
            (self.folder / before).unlink(missing_ok=True)

    @property
    def has_learned(self) -> bool:
        """Whether nearly all digits were right at the last two checks."""
        last = self.progress["checks"][-2:]
        return len(last) == 2 and all(
            check["digits"] >= LEARNED
            and check["sequences"] == self.plan.check_sequences
            for check in last
        )

    def run(self, steps: int) -> bool:
        """Trains until it has learned, or so many steps are done."""
        optimizer = self.model.optimizer
        while self.progress["step"] < steps and not self.has_learned:
            began = time.perf_counter()
            self._step(optimizer)
            step = self.progress["step"]
            if step % LOSSES_EVERY == 0:
                self._slow_down(optimizer)
            self.progress["seconds"] += time.perf_counter() - began
            if step % self.plan.check_every == 0:
                self._check(optimizer)
                self.save()
        return self.has_learned

    def _step(self, optimizer: keras.optimizers.Optimizer) -> None:
        step = self.progress["step"]
        rng = np.random.default_rng((self.seed, step))
        torch.manual_seed(int(rng.integers(2**31)))
        variables = self.model.trainable_variables
        total = np.zeros(2)
        self.model.zero_grad()
        share = 1.0 / len(self.plan.bins)
        for bin_ in self.plan.bins:
            x, y = self.data.batch(rng, bin_, self.plan.batch_size)
            logits, saturation = self.model(torch.as_tensor(x), training=True)
            loss = functional.cross_entropy(
                logits.reshape(-1, CLASSES), torch.as_tensor(y).reshape(-1)
            )
            saturation = self.progress["saturation_weight"] * saturation
            (share * (loss + saturation)).backward()
            total += share * np.array([loss.item(), saturation.item()])
        gradients = []
        for variable in variables:
            gradient = variable.value.grad
            noise = torch.nn.init.trunc_normal_(torch.empty_like(gradient))
            scale = GRADIENT_NOISE * float(optimizer.learning_rate)
            gradients.append(gradient + scale * noise)
        with torch.no_grad():
            optimizer.apply(gradients, variables)
        self.progress["step"] = step + 1
        self.progress["sums"] = list(np.add(self.progress["sums"], total))

    def _slow_down(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Follows the loss with saturation cost and learning rate."""
        loss, saturation = np.divide(self.progress["sums"], LOSSES_EVERY)
        rate = float(optimizer.learning_rate)
        weight = self.progress["saturation_weight"]
        weight *= rate * loss / (saturation + 1e-20)
        self.progress["saturation_weight"] = float(np.clip(weight, 1e-20, 1e-3))
        losses = self.progress["losses"]
        losses.append(float(loss))
        if len(losses) > 2 and min(losses[-2:]) > losses[-3]:
            optimizer.learning_rate = max(self.rate / 60, 0.7 * rate)
        self.progress["sums"] = [0.0, 0.0]

    def _check(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Looks at trained lengths, and at the length of the check."""
        step = self.progress["step"]
        rng = np.random.default_rng((self.seed, step, 1))
        longest = self.plan.bins[-1]
        trained = self._accuracies(self.data.batch(rng, longest, 128))
        count = self.plan.check_sequences
        x, y = self.data.test(rng, self.plan.check_length, count)
        # Most of the time of a check is that of long sequences: the rest of
        # them is for a network that might have learned.
        few = max(1, count // 8)
        found = self._accuracies((x[:few], y[:few]))
        if found[1] >= LEARNED - 0.02:
            rest = self._accuracies((x[few:], y[few:]))
            found = (few * found + (count - few) * rest) / count
            few = count
        check = {
            "step": step,
            "seconds": round(self.progress["seconds"], 1),
            "learning_rate": float(optimizer.learning_rate),
            "trained_padded": float(trained[0]),
            "trained_digits": float(trained[1]),
            "trained_whole": float(trained[2]),
            "sequences": few,
            "digits": float(found[1]),
            "whole": float(found[2]),
        }
        if getattr(optimizer, "clip_gradients", False):
            check["clip_rate"] = optimizer.clip_rate()
            optimizer.reset_clip_rates()
        self.progress["checks"].append(check)
        print(
            f"step {step}: length {longest}: {trained[0]:.4f} of all places, "
            f"{trained[1]:.4f} of the digits, {trained[2]:.3f} of the "
            f"sequences right; length {self.plan.check_length}: "
            f"{found[1]:.4f} of the digits, {found[2]:.3f} of {few} sequences",
            flush=True,
        )

    def _accuracies(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The right part of all places, of the digits, and of sequences."""
        x, y = batch
        with torch.no_grad():
            logits, _ = self.model(torch.as_tensor(x))
        is_right = logits.argmax(dim=-1).cpu().numpy() == y
        is_digit = y != PADDING
        return np.array(
            [
                is_right.mean(),
                is_right[is_digit].mean(),
                (is_right | ~is_digit).all(axis=1).mean(),
            ]
        )


def plot(folders: Sequence[Path], figure: Path) -> None:
    """Draws the checks of several runs, one colour for each optimizer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [json.loads((f / "progress.json").read_text()) for f in folders]
    names = list(dict.fromkeys(run["optimizer"] for run in runs))
    fig, (digits, whole) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    drawn = set()
    for run in runs:
        name = run["optimizer"]
        steps = [check["step"] for check in run["checks"]]
        for axes, what in ((digits, "digits"), (whole, "whole")):
            axes.plot(
                steps,
                [check[what] for check in run["checks"]],
                color=f"C{names.index(name)}",
                label=None if name in drawn else name,
                linewidth=1.5,
            )
        drawn.add(name)
    length = runs[0]["plan"]["check_length"]
    digits.set_ylabel("digits right")
    digits.set_title(f"Binary multiplication, {length} symbols", loc="left")
    whole.legend(frameon=False)
    whole.set_ylabel("whole products right")
    whole.set_xlabel("step")
    for axes in (digits, whole):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(figure, dpi=150)
    plt.close(fig)
    print(f"Saved {figure}")


def main() -> int:
    """Runs the script and returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Train a Neural GPU to multiply binary numbers."
    )
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamax_clipped",
        help="what trains it (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of everything random (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, help="at most so many, in place of the plan's"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short numbers and few maps: about a minute",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("neural_gpu_output"),
        help="folder of the run (default: %(default)s)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="draw these runs into `neural_gpu.png` of the output, and end",
    )
    arguments = parser.parse_args()
    if arguments.plot:
        arguments.output.mkdir(parents=True, exist_ok=True)
        plot(arguments.plot, arguments.output / "neural_gpu.png")
        return 0

    plan = QUICK if arguments.quick else Plan()
    training = Training(
        plan, arguments.optimizer, arguments.seed, arguments.output
    )
    has_learned = training.run(
        plan.steps if arguments.steps is None else arguments.steps
    )
    step = training.progress["step"]
    if has_learned:
        print(f"Learned: {LEARNED:.0%} of the digits by step {step}.")
    else:
        print(f"NOT learned in {step} steps.")
    return 0 if has_learned else 1


if __name__ == "__main__":
    with keras.device("cpu"):
        sys.exit(main())
