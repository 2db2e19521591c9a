"""How large a setting may be: far above any published network, and low enough that what it describes can be built
without memory and held against a file's tensors. Settings come with weights, and weights come from strangers."""

WIDTH = 2**14  # of a layer, an embedding, a list of such
HIDDEN = 2**17  # between the two layers of a block
DEPTH = 2**7  # blocks on end
LEVELS, BLOCKS = 16, 2**5  # of a U-Net, and of one level
FEW = 2**8
SIDE = 2**12  # of a picture, in pixels
CONTEXT = 2**14  # tokens of a text
VOCABULARY = 2**22
TOKEN = 2**31 - 1
TIMESTEPS = 2**16
CANDIDATES = 10**6
FACTOR = 1e6  # of guidance, noise, scales
