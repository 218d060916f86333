"""A smaller model learns from this one, then int8: ``--student.model resnet20``.

Soft targets of the teacher beside the labels (Hinton et al. 2015, arXiv:1503.02531). ``--student.init-from`` begins
with weights instead of chance.
"""

from jaxaccel.compression import FineTune, Fold, Pipeline, Quantize, Student


def pipeline() -> Pipeline:
    """A whole training of the student, at the recipe's own learning rate."""
    return Pipeline(
        {
            "student": Student(),
            "learn": FineTune(epochs=10, rate=1.0, warmup=0.05, teacher="origin"),
            "fold": Fold(),
            "int8": Quantize(),
        }
    )
