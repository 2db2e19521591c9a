"""One file <-> kind, settings and tensors; foreign tensor names -> ours. Knows no model class."""
