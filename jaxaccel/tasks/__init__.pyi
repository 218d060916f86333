# The public names: tasks, which recipes and files may name.

from .image_classification import ImageClassification as ImageClassification
from .reading import Input as Input
from .task import Task as Task
from .text_classification import TextClassification as TextClassification
