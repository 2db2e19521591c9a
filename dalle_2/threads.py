"""How threads wait that have nothing to do: asleep. It is set before torch is loaded, whose OpenMP reads it then.

By itself OpenMP has idle threads spin for a while, so that the next piece of work begins a little sooner. Where another
process wants the processor, that takes from both: a step may last ten times as long.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# In OpenMP's standard: GNU's, LLVM's and Intel's, of which every build of PyTorch brings one along, read it alike.
WAITING = {"OMP_WAIT_POLICY": "passive"}
# Whoever sets one of these has decided already; and what of each has threads spin without an end.
SPINNING = {
    "OMP_WAIT_POLICY": "active",
    "GOMP_SPINCOUNT": "infin",  # "infinite" or "infinity"
    "KMP_BLOCKTIME": "infinite",
    "KMP_LIBRARY": "turnaround",
}


def wait_asleep() -> None:
    """Has the idle threads of this process and of its children sleep, unless the environment says how they wait.

    In a process that has loaded torch already it is of use to the children only.
    """
    if not chosen(os.environ):
        os.environ.update(WAITING)


@contextmanager
def children_wait_asleep() -> Iterator[None]:
    """Inside, processes that are started have their idle threads sleep, unless the environment says how they wait."""
    alone = not chosen(os.environ)
    wait_asleep()
    try:
        yield
    finally:
        for name in WAITING if alone else ():
            os.environ.pop(name, None)


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """What an environment says of waiting threads, by variable; an empty one says nothing."""
    return {name: environment[name] for name in SPINNING if environment.get(name)}


def spinning(environment: Mapping[str, str]) -> list[str]:
    """The variables of an environment that have idle threads spin without an end."""
    found = chosen(environment).items()
    return [name for name, value in found if value.strip().lower().startswith(SPINNING[name])]
