"""`examples/neural_gpu.py`: its data, its network, its optimizers, its runs."""

import importlib.util
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.support import BACKEND
from tests.test_examples import ROOT, run

if BACKEND != "torch":
    pytest.skip("the example is for PyTorch", allow_module_level=True)

import torch  # noqa: E402

SCRIPT = ROOT / "examples" / "neural_gpu.py"


def load_script():
    spec = importlib.util.spec_from_file_location("neural_gpu", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks for its module there.
    sys.modules["neural_gpu"] = module
    spec.loader.exec_module(module)
    return module


script = load_script()


def to_number(symbols):
    return sum((int(s) - script.ZERO) << i for i, s in enumerate(symbols))


def test_examples_are_products():
    data = script.Multiplications((8, 12, 41))
    rng = np.random.default_rng(0)
    batches = [data.batch(rng, bin_, 200) for bin_ in data.bins]
    batches.append(data.test(rng, 401, 3))
    for x, y in batches:
        assert x.shape == y.shape
        for given, expected in zip(x, y, strict=True):
            length = int((given != script.PADDING).sum())
            assert not given[length:].any() and not expected[length:].any()
            k = length // 2
            assert given[k] == script.TIMES
            first, second = given[:k], given[k + 1 : length]
            assert to_number(expected[:length]) == (
                to_number(first) * to_number(second)
            )
    lengths = (batches[2][0] != script.PADDING).sum(axis=1)
    assert lengths.max() == 41
    assert 0 < (lengths <= 12).mean() < 0.2
    assert (batches[3][0] != script.PADDING).all()


def by_hand(model, tokens):
    """The network in float64 NumPy, one place after another."""
    w = {x.name: x.numpy().astype("float64") for x in model.weights}
    maps, third = model.maps, model.maps // 3
    still = maps - 2 * third
    mask = (tokens != script.PADDING)[..., None]
    length = tokens.shape[1]

    def saturation(x):
        return np.maximum(np.abs(x) - 0.9, 0.0).sum()

    def conv(state, name, bias_start):
        padded = np.pad(state, ((0, 0), (1, 1), (0, 0)))
        x = w[f"{name}_bias"] + bias_start
        for place in range(3):
            x = x + padded[:, place : place + length] @ w[name][place]
        return x

    x = w["embedding"][tokens] + w["embedding_bias"]
    cost = length * saturation(x)
    state = np.clip(x, -1, 1) * mask
    for _ in range(length):
        r, g = conv(state, "reset", 0.5), conv(state, "gate", 0.7)
        cost += saturation(r) + saturation(g)
        reset, gate = (np.clip((x + 1) / 2, 0, 1) for x in (r, g))
        c = conv(reset * state, "candidate", 0.0)
        cost += saturation(c)
        padded = np.pad(state, ((0, 0), (1, 1), (0, 0)))
        shifted = np.concatenate(
            [
                state[..., :still],
                padded[:, :-2, still : still + third],
                padded[:, 2:, still + third :],
            ],
            axis=-1,
        )
        state = (gate * shifted + (1 - gate) * np.clip(c, -1, 1)) * mask
    logits = state @ w["output"] + w["output_bias"]
    return logits, cost / (length**2 * len(tokens))


def test_network_is_that_of_the_paper(monkeypatch):
    monkeypatch.setattr(script, "KEPT_BY_DROPOUT", 1.0)
    keras.utils.set_random_seed(0)
    model = script.NeuralGPU(6)
    for weight in model.weights:
        weight.assign(keras.random.normal(weight.shape, stddev=0.7))
    tokens, _ = script.Multiplications((8, 12)).batch(
        np.random.default_rng(0), 12, 5
    )
    logits, cost = model(torch.as_tensor(tokens), training=True)
    expected, expected_cost = by_hand(model, tokens)
    np.testing.assert_allclose(
        logits.detach().cpu().numpy(), expected, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(cost.item(), expected_cost, rtol=1e-4)


def test_gradient_written_by_hand():
    state = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)

    def both(x):
        return torch.cat(script._Neighbours.apply(x, True), dim=-1)

    # That the state's neighbours have no gradient does not occur.
    for function in (both, lambda x: script._Neighbours.apply(x, False)[0]):
        assert torch.autograd.gradcheck(
            function, (state,), check_undefined_grad=False
        )


def adam(gradients, clip):
    """Adam's weights from zeros; `clip` gets the step and the gradients."""
    m, v = (
        [np.zeros_like(g, "float64") for g in gradients[0]] for _ in range(2)
    )
    weights = [np.zeros_like(g, "float64") for g in gradients[0]]
    for t, step in enumerate(gradients, start=1):
        step = clip(t, [g.astype("float64") for g in step])
        for i, g in enumerate(step):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            rate = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            weights[i] -= rate * m[i] / (np.sqrt(v[i]) + 1e-7)
    return weights


class AdaGCByHand:
    """Algorithm 1 of arXiv 2502.11034."""

    def __init__(self):
        self.past = [np.inf, np.inf]

    def __call__(self, t, gradients):
        sizes = [np.linalg.norm(g) for g in gradients]
        if t <= 100:
            factor = min(1.0, 1.0 / (np.hypot(*sizes) + 1e-6))
            self.past = [
                min(p, factor * s)
                for p, s in zip(self.past, sizes, strict=True)
            ]
            return [factor * g for g in gradients]
        clipped = []
        for i, (g, size) in enumerate(zip(gradients, sizes, strict=True)):
            limit = 1.04 * self.past[i]
            clipped.append(g * limit / (size + 1e-6) if size > limit else g)
            self.past[i] = 0.99 * self.past[i] + 0.01 * min(size, limit)
        return clipped


class PerTensorByHand:
    def __init__(self):
        self.v = [0.0, 0.0]

    def __call__(self, t, gradients):
        clipped = []
        for i, g in enumerate(gradients):
            limit = 3 * np.sqrt(np.sum(self.v[i] / (1 - 0.999**t))) + 0.01
            clipped.append(g * min(1.0, limit / np.linalg.norm(g)))
            self.v[i] = 0.999 * self.v[i] + 0.001 * clipped[-1] ** 2
        return clipped


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [("adagc", AdaGCByHand), ("per_tensor", PerTensorByHand)],
)
def test_peers(optimizer, clip):
    rng = np.random.default_rng(0)
    gradients = [
        [
            (50 if step % 29 == 28 else 1) * rng.normal(size=s).astype("f4")
            for s in ((3, 4), (5,))
        ]
        for step in range(130)
    ]
    variables = [keras.Variable(np.zeros_like(g)) for g in gradients[0]]
    peer = script.OPTIMIZERS[optimizer](0.01)
    for step in gradients:
        peer.apply([torch.as_tensor(g) for g in step], variables)
    for variable, expected in zip(
        variables, adam(gradients, clip()), strict=True
    ):
        np.testing.assert_allclose(
            variable.numpy(), expected, rtol=1e-3, atol=1e-5
        )


def start(folder, output, *options):
    arguments = [str(SCRIPT), "--quick", f"--output={output}", *options]
    return run(arguments, folder)


def progress_in(folder):
    progress = json.loads((folder / "progress.json").read_text())
    for check in progress["checks"]:
        del check["seconds"]
    del progress["seconds"]
    return progress


@pytest.mark.slow
def test_quick_learns_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    # With more threads, sums may be added in another order.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    printed = start(tmp_path, "whole")
    assert "Learned: 99% of the digits" in printed
    whole = progress_in(tmp_path / "whole")
    assert [c["digits"] >= 0.99 for c in whole["checks"][-2:]] == [True, True]
    assert any(check["clip_rate"] > 0 for check in whole["checks"])

    killed = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), "--quick", f"--output={killed}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as going:
        assert going.stdout
        for line in going.stdout:
            if line.startswith("step 150"):
                going.kill()
                break
    assert progress_in(killed)["step"] < whole["step"]
    printed = start(tmp_path, killed)
    assert "Going on from step" in printed
    found = progress_in(killed)
    # The losses and the accuracies too, to the last bit.
    assert found == whole

    with pytest.raises(AssertionError, match="has another run: its seed is 0"):
        start(tmp_path, "whole", "--seed=1")
    run([str(SCRIPT), "--plot", "whole", "killed", "--output=drawn"], tmp_path)
    assert (tmp_path / "drawn" / "neural_gpu.png").stat().st_size > 10_000


def test_steps_end_a_run(tmp_path):
    with pytest.raises(AssertionError, match="NOT learned in 20 steps"):
        start(tmp_path, "short", "--steps=20")
