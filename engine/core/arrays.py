"""Names of the arrays that most of the engine hands on: numpy, of positions, tokens and numbers about them."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
