# All lowerings: one record a primitive.

from .convolution import CONVOLUTION as CONVOLUTION
from .matmul import MATMUL as MATMUL
from .pooling import MAXIMUM as MAXIMUM
from .pooling import MAXIMUM_GRADIENT as MAXIMUM_GRADIENT
from .pooling import SUM as SUM
