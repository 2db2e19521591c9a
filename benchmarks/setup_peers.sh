#!/bin/sh
# Makes the environment where dalle_2 and dalle2-pytorch run side by side (about 6 GB, for the benchmarks only):
#     sh benchmarks/setup_peers.sh [FOLDER]      by default .venv-peers
# PYTHON names the interpreter, TORCH_INDEX one more index for pip; the pins were made with 3.11 on Linux.
set -eu
cd "$(dirname "$0")/.."
folder="${1:-.venv-peers}"

"${PYTHON:-python3}" -m venv "$folder"
python="$folder/bin/python"
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet --constraint benchmarks/constraints-peers.txt --requirement benchmarks/peers.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
# Without dependencies: the package's own ranges must not move what was pinned above.
"$python" -m pip install --quiet --no-deps --editable .
"$python" -W ignore -c "
import dalle2_pytorch, dalle_2, torch
print(f'dalle2-pytorch {dalle2_pytorch.__version__}, dalle_2 {dalle_2.__version__}, torch {torch.__version__}')"
