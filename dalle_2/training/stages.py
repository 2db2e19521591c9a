"""The names of the stages of a training, in order. Needs no torch, so that a command line is read quickly."""

STAGES = ("clip", "prior", "prior_ar", "draft", "decoder", "decoder_inpaint", "upsampler", "upsampler_2")
UPSAMPLERS = ("upsampler", "upsampler_2")
ASIDE = ("prior", "prior_ar", *UPSAMPLERS)  # stages that the others don't stand on: these may train beside them
BASES = {"decoder": "draft", "decoder_inpaint": "decoder"}  # what a stage goes on from, where the recipe has it
