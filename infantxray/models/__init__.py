"""Neural networks: encoders, the decoder, and the models of both stages.

- `encoders`: the eight encoders of the paper behind one contract, and how to add another.
- `decoder`, `autoencoder`, `heads`: stage one. `diagnosis`: stage two.
- `torch_weights`, `torch_names`, `input_scale`: weights from and to PyTorch, their names there, and
  the image scale they expect.
- `convolution`, `forms`: the spelling of convolutions and pools that is fast on each backend.
- `initialisation`, `depth`: initial parameters; the depth of each parameter.
"""

from infantxray.models.decoder import Decoder
from infantxray.models.encoders import ENCODERS, create_encoder

__all__ = ["ENCODERS", "Decoder", "create_encoder"]
