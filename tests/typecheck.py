"""The checker of shapes and types that every test run applies to the package."""

from typing import Any, Self

from beartype import BeartypeConf, BeartypeHintOverrides, beartype

# int passes for float, as Python does it; and methods are checked one by one, where beartype can't know
# what Self stands for.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=BeartypeHintOverrides({Self: Any})))
