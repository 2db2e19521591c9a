"""Names of choices that a command line offers. Needs no torch, so that mistakes are found at once."""

from typing import Literal

Threshold = Literal["none", "static", "dynamic"]
