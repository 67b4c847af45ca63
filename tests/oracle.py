"""A float64 oracle of the update rule, with a running error bound.

It imports NumPy and nothing of ours: it is written from the formulas alone.

    bound = clip_multiplier * u + clip_epsilon       # u before this step
    g     = clip(g, -bound, bound)
    m     = beta_1 * m + (1 - beta_1) * g
    u     = max(beta_2 * u, |g|)
    w     = w - learning_rate * m / (u + epsilon)    # [/ (1 - prod beta_1)]

With a target for the clip rate, after an update that counted any element:

    error           = min(clipped / counted / target - 1, 4)   # over all w
    error           = min(error, 0)            # in the first 100 updates
    excess          = clip(excess * exp(0.1 * error), 1e-4, 1e3)
    clip_multiplier = 1 + excess               # of the next update

Beside every value `x` of its state the oracle carries `x_error`: how far an
implementation of the same formulas in the weight's precision can be from it
through rounding alone. A test therefore needs no chosen tolerance:

    abs(w_float32 - oracle.w[0]) <= oracle.w_error[0]

How the bound is made. `roundoff` is half a unit in the last place of 1
(2^-24 for float32). One operation on inexact numbers gives the exact
operation's first-order effect of their errors (second-order terms are
included), plus the operation's own rounding:

| operation                 | own rounding, in roundoffs                     |
|---------------------------|------------------------------------------------|
| `+ - *`, a cast           | 1 (0 where an FMA joins two of them: covered)  |
| `/`                       | 2 (correct rounding is 1; some devices need 2) |
| `max`, `min`, `clip`      | 0; they are continuous with Lipschitz constant |
|                           | 1, so an element that may fall on either side  |
|                           | takes the larger of the two errors             |
| `1 - beta_1^t`            | 5, and with `l = -t log beta_1` of the power   |
|                           | `t max(1, l) + 4 (1 + l)`: covers a running    |
|                           | product, `pow`, and `expm1` of a sum of logs   |
| a sum of n terms          | n - 1, times the sum of magnitudes: any order  |

Every result that is not an exact zero is granted the smallest normal number
too, since some backends flush subnormal numbers to zero. `m` may be computed
as written above or as `m + (1 - beta_1) (g - m)`. The largest finite number
is assumed not to be passed, except by gradients that are infinite themselves.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = Any
NumberOrFunction = float | Callable[[int], float]


class Precision(NamedTuple):
    """What one rounding can do: relative, and absolute near zero."""

    roundoff: float
    tiny: float


FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_ROUNDOFF = 2.0**-24
DIVISION_ROUNDOFFS = 2
FUNCTION_ROUNDOFFS = 4
AMBIGUOUS_ULPS = 4

PRECISIONS = {
    # A float16 conversion keeps subnormal numbers, 2^-24 apart.
    "float16": Precision(2.0**-11, 2.0**-25),
    "bfloat16": Precision(2.0**-8, 2.0**-126),
    "float32": Precision(FLOAT32_ROUNDOFF, 2.0**-126),
    # Twice float64's own: the oracle rounds as often as what it judges.
    "float64": Precision(2 * 2.0**-53, 2.0**-1022),
}


class Approx:
    """A float64 value, and how far its rounded counterpart can be from it."""

    def __init__(self, value: Array, error: Array = 0.0):
        self.value = np.asarray(value, np.float64)
        error = np.asarray(error, np.float64)
        # An infinity stays an infinity: it has no rounding error.
        error = np.where(np.isinf(self.value), 0.0, error)
        self.error = np.broadcast_to(error, self.value.shape)

    @property
    def magnitude(self):
        return np.abs(self.value) + self.error

    def __getitem__(self, index):
        return Approx(self.value[index], self.error[index])

    def rounded(self, precision: Precision, roundoffs: float = 1):
        size = self.magnitude
        own = roundoffs * precision.roundoff * size + precision.tiny * (
            size > 0
        )
        return Approx(self.value, self.error + own)

    def plus(self, other, precision):
        total = Approx(self.value + other.value, self.error + other.error)
        return total.rounded(precision)

    def minus(self, other, precision):
        return self.plus(Approx(-other.value, other.error), precision)

    def times(self, other, precision):
        error = (
            np.abs(self.value) * other.error
            + np.abs(other.value) * self.error
            + self.error * other.error
        )
        # 0 * inf: an element that is exactly zero stays so.
        zero = (self.magnitude == 0) | (other.magnitude == 0)
        error = np.where(zero, 0.0, error)
        return Approx(self.value * other.value, error).rounded(precision)

    def over(self, other, precision):
        # 0 / 0 is 0 here: a weight with no gradient and no state stays.
        zero = self.magnitude == 0
        value = np.where(zero, 0.0, self.value / other.value)
        room = np.abs(other.value) - other.error
        error = (self.error + np.abs(value) * other.error) / np.maximum(room, 0)
        error = np.where(zero, 0.0, error)
        return Approx(value, error).rounded(precision, DIVISION_ROUNDOFFS)

    def absolute(self):
        return Approx(np.abs(self.value), self.error)

    def maximum(self, other):
        gap, reach = self.value - other.value, self.error + other.error
        error = np.where(
            gap >= reach,
            self.error,
            np.where(
                -gap >= reach, other.error, np.maximum(self.error, other.error)
            ),
        )
        return Approx(np.maximum(self.value, other.value), error)

    def at_most(self, limit):
        return Approx(np.minimum(self.value, limit), self.error)

    def clipped(self, bound):
        gap = np.abs(self.value) - bound.value
        reach = self.error + bound.error
        error = np.where(
            -gap >= reach,
            self.error,
            np.where(
                gap >= reach, bound.error, np.maximum(self.error, bound.error)
            ),
        )
        value = np.clip(self.value, -bound.value, bound.value)
        return Approx(value, error)


def _every(x, stride):
    """The elements of each `stride`-th run of 16; all of them for 1."""
    x = x.ravel()
    if stride == 1:
        return x
    whole = np.arange(x.size - x.size % 16)
    return x[whole[whole // 16 % stride == 0]]


class AdamaxClippedOracle:
    """What `AdamaxClipped` must compute, for a list of weights.

        oracle = AdamaxClippedOracle([kernel, bias], clip_multiplier=1.5)
        oracle.step([kernel_gradient, bias_gradient])
        assert (abs(result - oracle.w[0]) <= oracle.w_error[0]).all()

    A number given for `learning_rate`, a beta, an epsilon, the multiplier or
    `weight_decay` is rounded to float32 first, since the optimizer keeps it
    in a float32 variable; `1 - beta_1` is computed from the rounded `beta_1`.
    Keras's other numbers (`clipnorm`, `ema_momentum`, ...) are rounded to the
    precision they are used in. Everything else is float64.

    State, lists with an entry a weight: `w`, `m`, `u`, `average` and their
    bounds `w_error`, `m_error`, `u_error`, `average_error`; integer totals
    `clipped` and `counted`; `ambiguous`, the elements that lay within 4
    float32 units in the last place of their bound, and `uncertain`, those
    that rounding could put on either side. Scalars: `calls`, Keras's own
    clock, which counts the micro-steps of accumulation, and `iterations`, the
    number of updates; `beta_1_product`; `skipped_steps`; of the spike gate
    `is_armed`, `skips_in_row` and `spike_steps`, the `rates` that it saw,
    `uncertain_rates`, how many of them rounding could put on either side of
    the threshold, and of each spike in `spikes` its call, step, rate, and the
    rate of each weight that has one. A test may set any of them to begin
    elsewhere.

    The spike gate, for a step that `skip_nonfinite` lets pass: `rate` is the
    fraction of the elements that exceed their bound (of those that the
    clipping is given; a NaN exceeds none). At most the threshold: the step is
    applied, and arms the gate if it makes an update. Above it: an armed gate
    leaves the step out, unless it has left out `max_skipped_spikes` in a row;
    otherwise the step is applied, and the gate is not armed any more. In
    accumulation, a micro-batch is judged by the sum so far, itself included,
    over `N`. Where all weights have more than 1048576 elements, a part of
    each is looked at: of its elements, taken in runs of 16, those runs whose
    position is a multiple of the stride. That is the largest number without a
    divisor in common with the size that is at most size / 131072 or at most 8
    and size / 8192. What is left over by the runs is not looked at.

    Args:
        weights: Arrays, whose values their dtype holds exactly.
        learning_rate: A number or a function of `calls`.
        beta_1, beta_2, clip_multiplier, clip_epsilon: Numbers or functions
            of `iterations`. A multiplier below 1 counts as 1.
        target_clip_rate: What the multiplier follows, if not `None`; it begins
            at 1.2 then.
        epsilon: A number.
        clip_gradients, bias_correction, skip_nonfinite: Booleans.
        spike_threshold: A number or `None`.
        max_skipped_spikes: An integer.
        exclude_from_clipping: Positions of weights that are not clipped.
        weight_decay: A number or `None`.
        exclude_from_weight_decay: Positions of weights that do not decay.
        clipnorm, clipvalue, global_clipnorm: As in Keras; before our
            clipping.
        gradient_accumulation_steps: As in Keras: `N` calls make an update
            with the mean of their gradients. It makes sparse gradients dense.
        use_ema, ema_momentum, ema_overwrite_frequency: As in Keras, where
            the average moves in every call, micro-steps included.
        loss_scale_factor: As in Keras.
        dtypes: Name of the weights' dtype, or a list of names. The state and
            the arithmetic of a half-precision weight are float32, and the
            weight is rounded once a step; what Keras does before that
            (accumulation, norms, decay, averages) is granted the weight's
            own precision.
        bias_correction_dtype: Dtype in which `1 - prod beta_1` is computed,
            if coarser than that of the arithmetic: "float32" for a float64
            weight whose optimizer keeps the product in float32.
        round_hyperparameters: Whether numbers are rounded to float32.
        schedule_roundoffs: By how many float32 roundoffs the value of a
            function may differ from the optimizer's. 0: the function gives
            exactly the value, once rounded to float32.
    """

    def __init__(
        self,
        weights: Sequence[Array],
        *,
        learning_rate: NumberOrFunction = 0.001,
        beta_1: NumberOrFunction = 0.9,
        beta_2: NumberOrFunction = 0.999,
        epsilon: float = 1e-8,
        clip_gradients: bool = True,
        clip_multiplier: NumberOrFunction = 1.2,
        clip_epsilon: NumberOrFunction = 1e-4,
        target_clip_rate: float | None = None,
        bias_correction: bool = False,
        exclude_from_clipping: Iterable[int] = (),
        skip_nonfinite: bool = False,
        spike_threshold: float | None = None,
        max_skipped_spikes: int = 5,
        weight_decay: float | None = None,
        exclude_from_weight_decay: Iterable[int] = (),
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        dtypes: str | Sequence[str] = "float32",
        bias_correction_dtype: str | None = None,
        round_hyperparameters: bool = True,
        schedule_roundoffs: float = 0,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.clip_gradients = clip_gradients
        self.clip_multiplier = clip_multiplier
        self.clip_epsilon = clip_epsilon
        self.target_clip_rate = target_clip_rate
        self.excess = Approx(0.2).rounded(PRECISIONS["float32"])
        self.bias_correction = bias_correction
        self.exclude_from_clipping = set(exclude_from_clipping)
        self.skip_nonfinite = skip_nonfinite
        self.spike_threshold = spike_threshold
        self.max_skipped_spikes = max_skipped_spikes
        self.weight_decay = weight_decay
        self.exclude_from_weight_decay = set(exclude_from_weight_decay)
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.accumulate = gradient_accumulation_steps or 1
        self.bias_correction_dtype = bias_correction_dtype
        self.round_hyperparameters = round_hyperparameters
        self.schedule_roundoffs = schedule_roundoffs

        self.w = [np.array(weight, np.float64) for weight in weights]
        count = len(self.w)
        if isinstance(dtypes, str):
            dtypes = [dtypes] * count
        self.weight_precision = [PRECISIONS[dtype] for dtype in dtypes]
        self.precision = [
            PRECISIONS["float64" if dtype == "float64" else "float32"]
            for dtype in dtypes
        ]
        self.half = ["16" in dtype for dtype in dtypes]

        def zeros():
            return [np.zeros(weight.shape) for weight in self.w]

        self.m, self.u, self.average = zeros(), zeros(), zeros()
        self.w_error, self.m_error = zeros(), zeros()
        self.u_error, self.average_error = zeros(), zeros()
        self.accumulated = [Approx(zero) for zero in zeros()]
        self.clipped, self.counted = [0] * count, [0] * count
        self.ambiguous, self.uncertain = [0] * count, [0] * count
        self.calls = self.skipped_steps = 0
        self.is_armed = False
        self.skips_in_row = self.spike_steps = self.uncertain_rates = 0
        self.rates: list[float] = []
        self.spikes: list[tuple[int, int, float, dict[int, float]]] = []
        # The product of all beta_1 so far, and what bounds its error.
        self.beta_1_product = 1.0
        self._product_log, self._product_error = 0.0, 0.0

    @property
    def iterations(self) -> int:
        """The number of updates applied so far."""
        return self.calls // self.accumulate

    # What tests ask for.

    def clip_rates(self) -> list[float]:
        """The clipped fraction of each weight; NaN if nothing was counted."""
        return [
            clipped / counted if counted else float("nan")
            for clipped, counted in zip(self.clipped, self.counted, strict=True)
        ]

    def clip_rate(self) -> float:
        """The clipped fraction of all elements."""
        counted = sum(self.counted)
        return sum(self.clipped) / counted if counted else float("nan")

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Takes these weights as exact, to judge the next step alone.

        Without it the roundings of the weights add up, which tells little
        about half precision after some steps.
        """
        self.w = [np.array(weight, np.float64) for weight in weights]
        self.w_error = [np.zeros(weight.shape) for weight in self.w]

    def step(self, gradients: Sequence[Array]) -> bool:
        """One call of `apply`. Returns whether the weights were updated.

        Args:
            gradients: For each weight an array, `None`, or a pair
                `(indices, values)` for rows of it. An index may be repeated:
                its rows are summed first. Rows that do not appear stay as
                they are, apart from weight decay.
        """
        with np.errstate(all="ignore"):
            return self._step(gradients)

    # The steps of `apply`, in Keras's order.

    def _step(self, gradients):
        if len(gradients) != len(self.w):
            raise ValueError(f"{len(gradients)} gradients for {len(self.w)}.")
        if all(gradient is None for gradient in gradients):
            raise ValueError("No gradients provided for any variable.")

        # `rows[i]` is `...` where the whole weight has a gradient.
        present, rows, grads = [], {}, {}
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                present.append(i)
                rows[i], grads[i] = self._gather(i, gradient)
        if self.skip_nonfinite:
            finite = [np.isfinite(grads[i].value).all() for i in present]
            if not all(finite):
                self.skipped_steps += 1
                return False

        updates = True
        if self.accumulate > 1:
            updates = (self.calls + 1) % self.accumulate == 0
            before = list(self.accumulated)
            self._add_up(present, rows, grads)
            rows = dict.fromkeys(present, ...)
            grads = {i: self._mean(i) for i in present}
            if self._is_left_out(present, rows, grads, updates):
                self.accumulated = before
                return False
        elif self._is_left_out(present, rows, grads, updates):
            return False
        if updates:
            self._update(present, rows, grads)
        if self.use_ema:
            self._move_average()
        self.calls += 1
        return updates

    def _is_left_out(self, present, rows, grads, updates):
        if self.spike_threshold is None:
            return False
        (rate, lowest, highest), own = self._rate(present, rows, grads)
        threshold = np.float32(self.spike_threshold)
        self.rates.append(float(rate))
        self.uncertain_rates += (lowest > threshold) != (highest > threshold)
        if rate <= threshold:
            self.is_armed = self.is_armed or updates
            self.skips_in_row = 0
            return False
        if self.is_armed and self.skips_in_row < self.max_skipped_spikes:
            self.skips_in_row += 1
            self.spike_steps += 1
            call = self.calls + self.skipped_steps + self.spike_steps
            self.spikes.append((call, self.iterations, float(rate), own))
            return True
        self.is_armed = False
        self.skips_in_row = 0
        return False

    def _rate(self, present, rows, grads):
        """The rate, and what rounding could make of it at least and at most.

        And the rate of each weight.
        """
        own = {}
        above, surely, perhaps, given = 0.0, 0.0, 0.0, 0
        total = sum(u.size for u in self.u)
        grads = self._keras_clipping(present, grads)
        for i in present:
            if i in self.exclude_from_clipping:
                continue
            u = Approx(self.u[i], self.u_error[i])[rows[i]]
            bound, g = self._bound(u, self.precision[i]), grads[i]
            stride = 1
            if rows[i] is ... and total > 1048576:
                size = g.value.size
                stride = max(min(8, size // 8192), size // 131072, 1)
                while np.gcd(stride, size) > 1:
                    stride -= 1
            gap = _every(np.abs(g.value) - bound.value, stride)
            reach = _every(g.error + bound.error, stride)
            weight = g.value.size / gap.size if gap.size else 1.0
            above += weight * np.sum(gap > 0)
            if gap.size:
                own[i] = float(np.mean(gap > 0))
            surely += weight * np.sum(gap > reach)
            perhaps += weight * np.sum(gap > -reach)
            given += g.value.size
        given = np.float32(max(given, 1))
        rates = [np.float32(x) / given for x in (above, surely, perhaps)]
        return rates, own

    def _gather(self, i, gradient):
        """Unscaled, and summed over repeated indices."""
        if isinstance(gradient, tuple):
            indices, values = gradient
            rows, gradient = self._sum_rows(i, indices, values)
        else:
            rows, gradient = ..., Approx(gradient)
            if gradient.value.shape != self.w[i].shape:
                raise ValueError(
                    f"Gradient of shape {gradient.value.shape} for a weight "
                    f"of shape {self.w[i].shape}."
                )
        if self.loss_scale_factor is not None:
            scale = Approx(self.loss_scale_factor)
            gradient = gradient.over(scale, self.weight_precision[i])
        return rows, gradient

    def _sum_rows(self, i, indices, values):
        values = np.asarray(values, np.float64)
        indices = np.asarray(indices, np.int64)
        rows, place = np.unique(indices, return_inverse=True)
        place = place.reshape(-1)
        sums = np.zeros((len(rows), *values.shape[1:]))
        sizes = np.zeros_like(sums)
        np.add.at(sums, place, values)
        np.add.at(sizes, place, np.abs(values))
        terms = np.bincount(place, minlength=len(rows))
        terms = terms.reshape((-1,) + (1,) * (sums.ndim - 1))
        precision = self.weight_precision[i]
        own = precision.roundoff * sizes + precision.tiny * (sizes > 0)
        return rows, Approx(sums, np.where(terms > 1, (terms - 1) * own, 0.0))

    def _add_up(self, present, rows, grads):
        for i in present:
            dense, error = np.zeros(self.w[i].shape), np.zeros(self.w[i].shape)
            dense[rows[i]], error[rows[i]] = grads[i].value, grads[i].error
            total = self.accumulated[i].plus(
                Approx(dense, error), self.weight_precision[i]
            )
            if not self.calls % self.accumulate:
                total = Approx(dense, error)  # 0 + g is exact.
            self.accumulated[i] = total

    def _mean(self, i):
        steps = Approx(float(self.accumulate))
        return self.accumulated[i].over(steps, self.weight_precision[i])

    def _update(self, present, rows, grads):
        grads = self._keras_clipping(present, grads)
        if self.accumulate > 1:
            self.accumulated = [Approx(np.zeros(w.shape)) for w in self.w]
        rate = self._hyperparameter(self.learning_rate, self.calls)
        beta_1 = self._hyperparameter(self.beta_1, self.iterations)
        self._multiply_betas(beta_1)
        clipped, counted = sum(self.clipped), sum(self.counted)
        for i in present:
            self._decay_weight(i, rate)
            self._update_weight(i, rows[i], grads[i], rate, beta_1)
        if self.target_clip_rate is not None:
            self._follow_target(
                sum(self.clipped) - clipped, sum(self.counted) - counted
            )

    def _keras_clipping(self, present, grads):
        if self.clipnorm:
            return {
                i: self._clip_by_norm(
                    grads[i],
                    Approx(self.clipnorm),
                    self._norm([grads[i]], self.weight_precision[i]),
                    self.weight_precision[i],
                )
                for i in present
            }
        if self.global_clipnorm:
            # The norm joins all weights: the coarsest precision counts.
            coarse = max(self.weight_precision[i] for i in present)
            norm = self._norm([grads[i] for i in present], coarse)
            if not np.isfinite(norm.value):
                norm = Approx(np.nan)
            limit = Approx(self.global_clipnorm)
            return {
                # `scale = limit * min(1 / norm, 1 / limit)` has one more
                # rounding than `g * limit / max(norm, limit)`.
                i: self._clip_by_norm(grads[i], limit, norm, coarse).rounded(
                    coarse, 1 + DIVISION_ROUNDOFFS
                )
                for i in present
            }
        if self.clipvalue:
            return {i: self._clip_by_value(i, grads[i]) for i in present}
        return grads

    @staticmethod
    def _norm(grads, precision):
        squares, error, terms = 0.0, 0.0, 0
        for grad in grads:
            square = grad.times(grad, precision)
            squares += square.value.sum()
            error += square.error.sum()
            terms += square.value.size
        total = Approx(squares, error).rounded(precision, max(terms, 1))
        norm = np.sqrt(total.value)
        # sqrt(x + e) - sqrt(x) is largest in size below x.
        low = np.sqrt(np.maximum(total.value - total.error, 0.0))
        return Approx(norm, norm - low).rounded(precision)

    @staticmethod
    def _clip_by_norm(grad, limit, norm, precision):
        if np.isnan(norm.value):
            return Approx(np.full_like(grad.value, np.nan))
        limit = limit.rounded(precision)
        divisor = norm.maximum(limit)
        if limit.value - limit.error >= norm.value + norm.error:
            # Nothing to scale: `g * limit / limit`, whatever `limit` is.
            product = grad.rounded(precision)
            return product.rounded(precision, DIVISION_ROUNDOFFS)
        return grad.times(limit, precision).over(divisor, precision)

    def _clip_by_value(self, i, grad):
        limit = Approx(self.clipvalue)
        if self.half[i]:
            limit = limit.rounded(self.weight_precision[i])
        elif self.precision[i] is PRECISIONS["float32"]:
            limit = Approx(np.float32(self.clipvalue))
        return grad.clipped(limit)

    def _hyperparameter(self, given: Any, step: int):
        if callable(given):
            value: Any = given(step)
            value = float(value)
            if self.schedule_roundoffs:
                error = self.schedule_roundoffs * FLOAT32_ROUNDOFF * abs(value)
                return Approx(value, error)
            return Approx(np.float32(value))
        return Approx(
            np.float32(given) if self.round_hyperparameters else given
        )

    def _multiply_betas(self, beta_1):
        beta, error = float(beta_1.value), float(beta_1.error)
        if beta > 0:
            self._product_log -= np.log(beta)
            self._product_error += error / beta
        self.beta_1_product *= beta

    def _debias(self, precision):
        """`1 - prod beta_1`: a product, a power, or by a sum of logarithms."""
        if self.bias_correction_dtype is not None:
            precision = PRECISIONS[self.bias_correction_dtype]
        log, steps = self._product_log, self.iterations + 1
        roundoffs = steps * max(1.0, log) + FUNCTION_ROUNDOFFS * (1 + log)
        product = Approx(
            self.beta_1_product, self.beta_1_product * self._product_error
        ).rounded(precision, roundoffs)
        rest = Approx(1.0).minus(product, precision)
        return rest.rounded(precision, FUNCTION_ROUNDOFFS)

    def _decay_weight(self, i, rate):
        if self.weight_decay is None or i in self.exclude_from_weight_decay:
            return
        precision = self.weight_precision[i]
        decay = self._hyperparameter(self.weight_decay, self.iterations)
        if self.half[i]:
            decay, rate = decay.rounded(precision), rate.rounded(precision)
        w = Approx(self.w[i], self.w_error[i])
        lost = w.times(decay, precision).times(rate, precision)
        self._store(i, "w", ..., w.minus(lost, precision))

    def _update_weight(self, i, rows, g, rate, beta_1):
        precision = self.precision[i]
        m = Approx(self.m[i], self.m_error[i])[rows]
        u = Approx(self.u[i], self.u_error[i])[rows]
        w = Approx(self.w[i], self.w_error[i])[rows]
        beta_2 = self._hyperparameter(self.beta_2, self.iterations)
        epsilon = self._hyperparameter(self.epsilon, self.iterations)

        if i not in self.exclude_from_clipping:
            self.counted[i] += g.value.size
            if self.clip_gradients:
                bound = self._bound(u, precision)
                self._count(i, g, bound)
                g = g.clipped(bound)

        m = self._moment(m, g, beta_1, precision)
        u = beta_2.times(u, precision).maximum(g.absolute())
        if self.bias_correction:
            rate = rate.over(self._debias(precision), precision)
        numerator = rate.times(m, precision)
        denominator = u.plus(epsilon, precision)
        w = w.minus(numerator.over(denominator, precision), precision)
        if self.half[i]:
            w = w.rounded(self.weight_precision[i])

        self._store(i, "m", rows, m)
        self._store(i, "u", rows, u)
        self._store(i, "w", rows, w)

    def _bound(self, u, precision):
        if self.target_clip_rate is not None:
            multiplier = Approx(1.0).plus(self.excess, precision)
        else:
            multiplier = self._hyperparameter(
                self.clip_multiplier, self.iterations
            ).maximum(Approx(1.0))
        offset = self._hyperparameter(self.clip_epsilon, self.iterations)
        bound = multiplier.times(u, precision).plus(offset, precision)
        return bound.at_most(FLOAT32_MAX)

    def _follow_target(self, clipped, counted):
        if not counted:
            return
        precision = PRECISIONS["float32"]
        # Small counts, which are exact in float32.
        rate = Approx(clipped).over(Approx(counted), precision)
        target = Approx(self.target_clip_rate).rounded(precision)
        error = rate.over(target, precision).minus(Approx(1.0), precision)
        error = error.at_most(4.0 if self.iterations >= 100 else 0.0)
        speed = error.times(Approx(0.1).rounded(precision), precision)
        factor = Approx(
            np.exp(speed.value), np.exp(speed.value) * np.expm1(speed.error)
        ).rounded(precision, FUNCTION_ROUNDOFFS)
        excess = self.excess.times(factor, precision)
        self.excess = Approx(np.clip(excess.value, 1e-4, 1e3), excess.error)

    def _count(self, i, g, bound):
        size = np.abs(g.value)
        gap, reach = size - bound.value, g.error + bound.error
        ulp = np.spacing(bound.value.astype(np.float32)).astype(np.float64)
        near = (np.abs(gap) <= AMBIGUOUS_ULPS * ulp) & (size > 0)
        self.clipped[i] += int(np.sum(gap > 0))
        self.ambiguous[i] += int(np.sum(near))
        self.uncertain[i] += int(np.sum((-reach < gap) & (gap <= reach)))

    @staticmethod
    def _moment(m, g, beta_1, precision):
        beta = float(beta_1.value)
        rest = Approx(1.0 - beta, beta_1.error)
        if beta < 0.5:  # From 0.5 on the difference is exact.
            rest = rest.rounded(precision)
        kept, added = beta_1.times(m, precision), rest.times(g, precision)
        # What `m + (1 - beta_1) (g - m)`, in its two forms, may lose more.
        more = added.magnitude + (2.0 if beta < 2 / 3 else 0.0) * m.magnitude
        result = kept.plus(added, precision)
        return Approx(result.value, result.error + precision.roundoff * more)

    def _move_average(self):
        frequency = self.ema_overwrite_frequency
        for i in range(len(self.w)):
            precision = self.weight_precision[i]
            w = Approx(self.w[i], self.w_error[i])
            average = w  # Keras: the momentum is 0 up to the first update.
            if self.iterations:
                momentum = Approx(self.ema_momentum)
                if precision is not PRECISIONS["float64"]:
                    momentum = Approx(np.float32(self.ema_momentum))
                if self.half[i]:
                    momentum = momentum.rounded(precision)
                old = Approx(self.average[i], self.average_error[i])
                rest = Approx(1.0).minus(momentum, precision)
                average = momentum.times(old, precision).plus(
                    rest.times(w, precision), precision
                )
            self._store(i, "average", ..., average)
            if frequency and (self.iterations + 1) % frequency == 0:
                self._store(i, "w", ..., average)

    def _store(self, i, name, rows, result):
        getattr(self, name)[i][rows] = result.value
        getattr(self, name + "_error")[i][rows] = result.error


def heavy_tailed_gradients(
    rng: np.random.Generator, shape: tuple[int, ...], steps: int
) -> np.ndarray:
    """Float32 gradients over 9 orders of magnitude, 1e-6 to 1e3.

    Each element has a scale and a sign of its own and wanders about them.
    Now and then it is zero, or jumps to any other size; in a burst a whole
    stretch of the array jumps up at once. Some elements stay zero at first.

    Args:
        rng: A `numpy.random.Generator`.
        shape: Shape of a weight.
        steps: Number of gradients.

    Returns:
        An array of shape `(steps, *shape)`.
    """
    size = int(np.prod(shape))
    full = (steps, size)
    exponent = rng.uniform(-6.0, 3.0, size) + rng.normal(0.0, 0.5, full)
    jump = rng.random(full) < 0.1
    exponent = np.where(jump, rng.uniform(-6.0, 3.0, full), exponent)
    for step in np.flatnonzero(rng.random(steps) < 0.08):
        low, high = np.sort(rng.integers(0, size + 1, 2))
        exponent[step, low:high] += rng.uniform(1.0, 6.0)
    gradients = 10.0 ** np.clip(exponent, -6.0, 3.0)
    sign = rng.choice([-1.0, 1.0], size)
    gradients *= np.where(rng.random(full) < 0.3, -sign, sign)
    gradients[rng.random(full) < 0.1] = 0.0
    late = rng.random(size) < 0.1
    gradients[: steps // 4, late] = 0.0
    return gradients.astype(np.float32).reshape((steps, *shape))


def sparse_heavy_tailed_gradients(
    rng: np.random.Generator, rows: int, width: int, steps: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Heavy-tailed gradients of some rows, with repeated indices.

    Every fourth one has as many slices as the weight has rows: with
    permuted indices, so that slice `k` is not row `k`, or with repeated ones,
    where a rule that takes the slices for the weight finds matching shapes
    and clips the wrong rows. Others have a few slices, or one, or none.

    Args:
        rng: A `numpy.random.Generator`.
        rows: Number of rows of the weight, at least 2.
        width: Size of a row.
        steps: Number of gradients.

    Returns:
        A list of pairs `(indices, values)`: int32, shape `(n,)`; float32,
        shape `(n, width)`.
    """
    dense = heavy_tailed_gradients(rng, (2 * rows, width), steps)
    result = []
    for step in range(steps):
        if step % 8 == 0:
            indices = np.roll(rng.permutation(rows), 1)
            if (indices == np.arange(rows)).all():
                indices = indices[::-1]
        elif step % 8 == 4:
            indices = rng.integers(0, rows, rows)
            indices[-1] = indices[0]
        elif step % 8 == 7:
            indices = rng.integers(0, rows, rng.integers(0, 2))
        else:
            indices = rng.integers(0, rows, rng.integers(1, 2 * rows))
        # An index keeps its scale, whichever slices it appears in.
        values = dense[step, indices].copy()
        again = np.ones(len(indices), bool)
        again[np.unique(indices, return_index=True)[1]] = False
        values[again] *= rng.uniform(-1.0, 1.0, (again.sum(), 1))
        result.append((indices.astype(np.int32), values))
    return result
