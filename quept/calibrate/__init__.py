"""Calibration: a model and a recipe in, an artifact on disk out.

job         one run from a recipe to an artifact, resumed where it was cut
comparison  each width at the best that is known of it, by what held-out data say
prepare     the transforms of a recipe
grids       static grids of activations, chosen by what the answers suffer
observe     what layers are given at full precision: samples for static grids
logits      logits of any model on its inputs, where they count
trainable   what is learned of each layer; the model at any plan while it is learned
nested      the same for nested codes, which learn how they are read; nested_artifact: what comes of it
routers     what bits are worth to each token, and routers that tell
block_wise  the stage that tunes one block after another on its own outputs (QuEPT's reconstruction)
capture     what a model hands to its blocks
activations the streams that flow between them, in memory or on disk
end_to_end  the stage that tunes all layers together on divergence from full precision
precision   what is computed in: bfloat16 products where they pay
optimizer   Adam over what is learned, and the schedule of its rates
rounding    which of its two neighbors on the grid each weight goes to; in_turn: layer after layer, on what
            rounded ones give; ranges: the ends of each group's range, searched before; residual: what a
            layer is to make good of the stream that it adds to
loss        that divergence, with its gradient
checkpoint  the state of a run on disk: where it goes on after it was cut
errors      CalibrationError
"""

from quept.stage import make_callable

from .comparison import worse
from .errors import CalibrationError
from .job import calibrate, calibrate_rtn

make_callable(__name__)
