"""What the tests of torch's kernels run in processes of their own.

    python -m tests.updates.torch_script memory keras|compiled|eager DTYPE
    python -m tests.updates.torch_script step

`memory` prints by how many bytes the peak of the process grows in steps on one
large weight of a dtype; `step` takes a step and prints which kernel took it.
"""

import os
import resource
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch

import keras_adamax
from keras_adamax.native import torch as native_torch

SIDE = 4096


def peak():
    # Kilobytes on Linux.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(name, dtype):
    if name == "keras":
        optimizer = keras.optimizers.Adamax()
    else:
        os.environ["KERAS_ADAMAX_KERNEL"] = name
        optimizer = keras_adamax.AdamaxClipped()
    # From an initializer: what an array needs on its way would hide a growth.
    small, large = (
        keras.Variable("ones", shape=(side, side), dtype=dtype, name=name)
        for side, name in ((8, "small"), (SIDE, "large"))
    )
    optimizer.build([small, large])
    gradients = [torch.ones_like(v.value.data) for v in (small, large)]
    # What the first step loads is none of this.
    optimizer.apply([gradients[0], None], [small, large])
    for value in (large.value, *(v.value for v in optimizer.variables)):
        value.data.add_(0)
    before = peak()
    for _ in range(3):
        optimizer.apply(gradients, [small, large])
    print(peak() - before)


def step():
    variable = keras.Variable(np.ones(3, "float32"), name="weight")
    optimizer = keras_adamax.AdamaxClipped()
    optimizer.build([variable])
    optimizer.apply([torch.ones(3)], [variable])
    assert optimizer.clip_rate() == 1.0
    print("compiled" if native_torch.serves("auto", []) else "eager")


if __name__ == "__main__":
    {"memory": memory, "step": step}[sys.argv[1]](*sys.argv[2:])
