"""Hyperparameter search for `keras_adamax`, with KerasTuner and Optuna."""
