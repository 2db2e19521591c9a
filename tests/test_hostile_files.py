"""Some of the files of `make test-hostile`: none hangs, none runs code, and what is refused is said in a sentence."""

from hostile.harness import attack

QUICK = [  # those whose sound folders need nobody else's packages
    "pipelines of ours", "manifests and lists of pictures", "unfinished trainings", "tokenizers of ours",
    "vocabularies of GLIDE", "recipes", "weights of GLIDE",
]  # fmt: skip


def test_damaged_weight_files_are_read_or_refused_in_a_sentence():
    assert attack("hostile.weights:CASES", tries=150) == []


def test_damaged_folders_are_read_or_refused_in_a_sentence():
    assert attack("hostile.folders:CASES", tries=210, names=QUICK) == []
