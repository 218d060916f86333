# The public names: tasks, which recipes and files may name.

from .audio_classification import AudioClassification as AudioClassification
from .bring_sounds import Recording as Recording
from .image_classification import ImageClassification as ImageClassification
from .language_modeling import LanguageModeling as LanguageModeling
from .reading import Input as Input
from .speech_recognition import SpeechRecognition as SpeechRecognition
from .task import Task as Task
from .text_classification import TextClassification as TextClassification
from .translation import Translation as Translation
