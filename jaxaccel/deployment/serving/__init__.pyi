# The public names of serving.

from .batching import BatchOptions as BatchOptions
from .limits import Limits as Limits
from .server import Server as Server
from .server_options import ServerOptions as ServerOptions
from .sources import Opened as Opened
from .sources import Predictor as Predictor
from .sources import Source as Source
