"""Train, see what was clipped, draw it: the shortest whole program.

    KERAS_BACKEND=jax python examples/first_steps.py

It needs the extra of a backend, `plots` and `examples` (scikit-learn, whose
handwritten digits it reads), and takes some seconds.
"""

import keras
from sklearn.datasets import load_digits

import keras_adamax
from keras_adamax import plots

images, labels = load_digits(return_X_y=True)
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(
    optimizer=keras_adamax.AdamaxClipped(0.005, spike_threshold=0.2),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
loggers = [
    keras_adamax.ClipRateLogger(update_freq=10, filename="first_steps.csv"),
    keras_adamax.WeightDeltaLogger(update_freq=10, filename="first_steps.csv"),
]
model.fit(images / 16.0, labels, epochs=5, callbacks=loggers, verbose=2)
print(f"Clipped: {model.optimizer.clip_rate():.2%} of all gradient elements")
plots.save_report("first_steps.csv", "first_steps.png")
print("The records are in first_steps.csv, the figure is first_steps.png")
