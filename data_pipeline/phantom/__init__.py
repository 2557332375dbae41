"""The phantom: infant and adult abdominal radiographs computed from anatomy and physics.

    records = open_phantom("infant:films=500:seed=1")
    image = render(records.image_path[0], 224)           # uint8 [224, 224], bone white, gas black
    truth(records.image_path[0], 224).boxes              # where the finding is

Image `i` of a place has the same bytes in every process and on every machine. No file is written.
"""

from data_pipeline.phantom.patients import CLASSES, open_phantom
from data_pipeline.phantom.rendering import Box, Truth, render, render_raw, truth

VERSION = "phantom v1"

__all__ = ["CLASSES", "VERSION", "Box", "Truth", "open_phantom", "render", "render_raw", "truth"]
