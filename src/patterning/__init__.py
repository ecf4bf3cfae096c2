"""Which training data makes a neural network grow the internal structure you want?

The stages, in the order of use: `tasks`, `models`, `training`, `posterior`, `response`, `intervention`, `verification`,
`report`; `experiments` joins them. Importing this package imports none of them.
"""

from patterning.errors import PatterningError

__all__ = ["PatterningError"]
