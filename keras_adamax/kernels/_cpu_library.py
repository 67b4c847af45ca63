"""What the C++ updates of CPU tensors take, and their names in XLA."""

# Dtypes of gradients that are taken as they are, by the weight's
# (`kUpdates` in `_cpu_update.h`).
GRADIENT_DTYPES = {
    "float32": {"float32"},
    "float64": {"float64"},
    "float16": {"float16", "float32"},
    "bfloat16": {"bfloat16", "float32"},
}

# The handlers of `XLA_SOURCE`.
XLA_SOURCE = "_xla_cpu.cpp"
UPDATE = "keras_adamax_update"
ADD_COUNTS = "keras_adamax_add_counts"
COUNT_NONFINITE = "keras_adamax_count_nonfinite"
# Variables of about so many elements go into a call of XLA: all of them in one
# would keep every gradient until the last is known.
ELEMENTS_A_CALL = 2**18
