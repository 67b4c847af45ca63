"""Figures of what `ClipRateLogger` and `WeightDeltaLogger` recorded.

Each function takes `callback.records` or the path of the CSV file that a
logger wrote, and returns a `matplotlib.figure.Figure`. None of them touches
matplotlib's global state, so that they work without a display, in notebooks
and in threads. They need matplotlib: `pip install matplotlib`.

From the command line:

    python -m keras_adamax.plots run.csv -o report.png
"""

from keras_adamax.plots._figures import (
    plot_clip_rates,
    plot_comparison,
    plot_gradients,
    plot_training,
    plot_weight_changes,
    save_report,
)
from keras_adamax.plots._records import read_records, write_records

__all__ = [
    "plot_clip_rates",
    "plot_comparison",
    "plot_gradients",
    "plot_training",
    "plot_weight_changes",
    "read_records",
    "save_report",
    "write_records",
]
