"""What losses of pairs are called and what each takes: for settings, which are read before torch is."""

from typing import Literal

LossName = Literal[
    "sigmoid",
    "ipo",
    "hinge",
    "robust",
    "exo",
    "apo_zero",
    "apo_down",
    "nca",
    "sppo",
    "orpo",
    "cpo",
    "discopop",
    "kto",
]
REFERENCE_FREE = {"orpo", "cpo"}
SMOOTHED = {"sigmoid", "robust", "exo", "cpo"}  # the others ignore label smoothing
SELF_NORMALISED = {"ipo", "orpo"}  # `normalised` changes nothing for them
