"""What XLA made of a program: the products in optimized HLO text, with the types they are computed in.

`operations` reads ``compiled.as_text()`` of a CPU, GPU or TPU and finds each matrix product and convolution, wherever
it stands: in a fusion, in the body of a loop, or as a call of a library. That is how one proves that int8 is
multiplied as int8: a program may say so and the compiler may still convert both operands to float32 first.

On a TPU all products are convolutions, those of batched operands with windows that lie mostly in padding; so only
the taps that meet an element count, as XLA itself counts. What is no product in the text is not found: XLA turns a
matrix times a vector into a multiplication and a sum on GPUs and TPUs, and a Pallas kernel is opaque.
"""

from jaxaccel.core.hlo.operations import Inside, Operation, describe_operation, operations
from jaxaccel.core.hlo.text import bits, parse
from jaxaccel.core.hlo.traffic import memory_traffic

__all__ = ["Inside", "Operation", "bits", "describe_operation", "memory_traffic", "operations", "parse"]
