"""The networks: encoders, the decoder, and the models of both stages."""

from infantxray.models.decoder import Decoder
from infantxray.models.encoders import ENCODERS, create_encoder

__all__ = ["ENCODERS", "Decoder", "create_encoder"]
