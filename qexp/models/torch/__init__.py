"""PyTorch modules as models: any module, any loss, one gradient a record.

Every record is a batch of its own: :func:`torch.func.vmap` carries the module over a block of
records, so that no layer ever sees two records at once. Linear and convolution layers are tapped:
a zero is added to their outputs, its gradient is δ, and with the layer's input a the gradient in
the weights is Σ_t δ_t ⊗ a_t, without a backward pass into the weights and in the form that
Kronecker curvature needs. Other parameters are differentiated directly.

Layout of the weights: layer after layer in the order of ``module.named_modules()``. A tapped layer
is a matrix (out, in + 1), its last column the bias (a convolution's in is channels times kernel);
any other parameter is a matrix (first dimension, rest), or (1, n) for a vector.
"""

try:
    # What no older version has.
    from torch.func import functional_call as _functional_call  # noqa: F401
    from torch.nn.attention import sdpa_kernel as _sdpa_kernel  # noqa: F401
except ImportError as error:
    raise ImportError(
        'qexp.models.torch needs PyTorch 2.4 or newer; install it with `pip install "qexp[torch]"`'
    ) from error

from qexp.models.torch._model import TorchModel
from qexp.models.torch._sources import TorchCurvatureSource, TorchGradientSource

__all__ = ["TorchCurvatureSource", "TorchGradientSource", "TorchModel"]
