"""The parts of `AdamaxClipped`, by what they do. Each knows those it extends.

`AdamaxClipped` itself has the constructor, `build` and the configuration.
"""
