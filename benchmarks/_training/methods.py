"""All methods of the comparison, by the names that tables give them."""

import optax

from _training import ours, peers
from _training.optimizer import Optimizer, from_optax
from keras_adamax import TargetClipRate

# Found in a pilot, on the digits; the same for all tasks.
SPIKE_THRESHOLD = 0.2
TARGET_CLIP_RATE = 0.05
GLOBAL_CLIPNORMS = (0.1, 1.0, 10.0)
CLIPNORM = 1.0

DEFAULTS = "AdamaxClipped"
GATE = "AdamaxClipped, gate"

OURS: dict[str, Optimizer] = {
    DEFAULTS: ours.adamax_clipped(),
    "AdamaxClipped, paper's beta_2": ours.adamax_clipped(ours.paper_beta_2),
    GATE: ours.adamax_clipped(gate=ours.SpikeGate(SPIKE_THRESHOLD)),
    "AdamaxClipped, TargetClipRate": ours.adamax_clipped(
        target=TargetClipRate(TARGET_CLIP_RATE)
    ),
}


def _plain() -> dict[str, Optimizer]:
    """Keras's optimizers, each with what Keras has against large gradients."""
    found = {}
    for name, base in (
        ("Adam", peers.adam()),
        ("Adamax", peers.adamax()),
        ("RMSprop", peers.rmsprop()),
    ):
        found[name] = from_optax(base)
        for limit in GLOBAL_CLIPNORMS:
            found[f"{name}, global_clipnorm {limit:g}"] = peers.before(
                optax.clip_by_global_norm(limit), base
            )
        found[f"{name}, clipnorm {CLIPNORM:g}"] = peers.before(
            peers.clip_by_norm(CLIPNORM), base
        )
    return found


RECENT: dict[str, Optimizer] = {
    "AdaGC": peers.before(peers.ada_gc(), peers.adam()),
    "ZClip": peers.before(peers.z_clip(), peers.adam()),
    "AutoClip": peers.before(peers.auto_clip(), peers.adam()),
    "AGC": peers.before(peers.agc(), peers.adam()),
    "SPAM": from_optax(peers.spam()),
    "StableAdamW": from_optax(peers.stable_adamw()),
    "ADOPT": from_optax(peers.adopt()),
    "AdamWClip": from_optax(peers.adamw_clip()),
    "per-tensor (RSE, RRU)": from_optax(peers.per_tensor_clip()),
}

METHODS: dict[str, Optimizer] = OURS | _plain() | RECENT
# What `--quick` runs: on the problem that compiles fast, and on the others.
QUICK_METHODS = (
    *OURS,
    *RECENT,
    "Adam",
    "Adamax, global_clipnorm 1",
    "RMSprop, clipnorm 1",
)
QUICK_METHODS_ELSEWHERE = (GATE,)
