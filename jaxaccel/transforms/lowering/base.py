"""What a lowering is: one primitive, the equivalent forms of it, and which of them XLA:CPU runs fast."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Params = Mapping[str, Any]
"""Parameters of a primitive, as an equation has them."""
Choice = tuple[str, str]
"""A form, and why it was chosen."""
XLA = "xla"
"""The form that XLA itself gives an operation."""
KERNEL = "oneDNN"
"""The form that a kernel of oneDNN computes, where there is one (`jaxaccel.core.kernels`)."""


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A lowering has one primitive, in every form that computes it, and the rule that chooses one on the CPU.

    To add one, write it beside its forms and list it in `lowering/__init__.pyi`.
    """

    primitive: Any
    list_forms: Callable[[Params, Sequence[Any]], list[str]]
    """``list_forms(params, shapes)``: the forms for operands of these shapes and floating dtypes, `XLA` first."""
    compute: Callable[[Params, Sequence[jax.Array], str], jax.Array]
    """``compute(params, operands, form)``: the primitive in one of its forms other than `XLA`."""
    rule: Callable[[Params, Sequence[Any]], Choice]
    """``rule(params, shapes)``: the form for float32. It need not be among those listed, which then leaves `XLA`."""
    evidence: str
    """The command that measures what the rule says."""

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.primitive.name
