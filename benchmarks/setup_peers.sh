#!/bin/sh
# Makes .venv-peers, where dalle_2 and dalle2-pytorch run side by side (about 6 GB, for the benchmarks only).
# PYTHON names the interpreter; 3.11 is what the pins were made with.
set -eu
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv .venv-peers
pip=".venv-peers/bin/python -m pip"
$pip install --quiet --upgrade pip
$pip install --quiet --constraint benchmarks/constraints-peers.txt --requirement benchmarks/peers.txt
# Without dependencies: the package's own ranges must not move what was pinned above.
$pip install --quiet --no-deps --editable .
.venv-peers/bin/python -W ignore -c "
import dalle2_pytorch, dalle_2, torch
print(f'.venv-peers: dalle2-pytorch {dalle2_pytorch.__version__}, dalle_2 {dalle_2.__version__}, torch {torch.__version__}')"
