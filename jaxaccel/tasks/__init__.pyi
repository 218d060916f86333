# The public names: tasks.

from .image_classification import ImageClassification as ImageClassification
from .task import Task as Task
