# The public names: optimizers and schedules.

from .optimizer import Optimizer as Optimizer
from .schedule import Schedule as Schedule
from .sparse import Sparse as Sparse
from .sparse import sparse as sparse
