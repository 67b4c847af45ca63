"""What the API reference makes of the docstrings.

mkdocstrings loads it, see `mkdocs.yml`.
"""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Names the section of examples as griffe knows it, and sets code apart.

    The docstrings say `Example:`, as Keras's do; griffe's Google style has
    `Examples:` only, and would read the code as prose.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of an object that was loaded."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"(?m)^Example:$", "Examples:", obj.docstring.value
            )

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Shows the number where the default of an argument is a constant."""
        for parameter in func.parameters:
            name = str(parameter.default)
            if re.fullmatch(r"_[A-Z_]+", name) and name in func.module.members:
                parameter.default = str(func.module.members[name].value)
