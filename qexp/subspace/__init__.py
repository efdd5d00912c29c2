"""Public subspaces: fine-tuning in the few directions that moves of public records call for.

Noise grows with the number of coordinates, and most of them a new domain hardly asks for. Which
ones it may ask for can be learnt without a private record: move public records elsewhere, in as
many ways as come to mind, and see where the gradients point. In a layer's whitened coordinates
their leading directions, some hundred of the many thousand, hold most of what moves alike will
call for, and a good part of what a real domain does.

The map is a projection P like any other: public, fixed before the first private record is read.
"""

from qexp.subspace._directions import DAMPING, Directions, image_moves, learn_directions
from qexp.subspace._projection import PublicSubspace, SubspaceLayer

__all__ = [
    "DAMPING",
    "Directions",
    "PublicSubspace",
    "SubspaceLayer",
    "image_moves",
    "learn_directions",
]
