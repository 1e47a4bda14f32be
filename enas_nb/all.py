"Everything at once, for tutorials and the prompt: `from enas_nb.all import *`. The one module written by hand."

from .space import *
from .layout import *
from .draw import *
from .presets import *
from .controller import *
from .reinforce import *
from .tabular import *
from .memory import *
from .data import *
from .fused import *
from .text import *
from .layers import *
from .macro import *
from .micro import *
from .recurrent import *
from .checkpoint import *
from .train import *
from .cost import *
from .search import *
from .retrain import *
from .evaluate import *
from .report import *
from .run import *
from .published import *
from .recipes import *
from .experiment import *
