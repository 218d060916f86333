"""A docstring may end a paragraph with two colons before indented code; Markdown wants one."""

import re
from typing import Any

import griffe


class LiteralBlocks(griffe.Extension):
    """Turns ``text::`` into ``text:`` in every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Griffe calls it with each object that it has read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
