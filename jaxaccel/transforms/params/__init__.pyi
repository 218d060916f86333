# The public names: parameters in, parameters out.

from .channels.remove import Removed as Removed
from .channels.remove import remove_channels as remove_channels
from .load import load as load
from .low_rank import low_rank as low_rank
from .low_rank import spectra as spectra
from .multiply_adds import count_multiply_adds as count_multiply_adds
from .prune import masked as masked
from .prune import prune as prune
from .quantize import dequantize as dequantize
from .quantize import quantize as quantize
from .save import save as save
from .share import share as share
from .trainable import trainable as trainable
from .trainable import with_trained as with_trained
