"Everything at once, for tutorials and the prompt: `from enas_nb.all import *`. The one module written by hand."

from .space import *
