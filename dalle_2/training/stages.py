"""The names of the stages of a training, in order. Needs no torch, so that a command line is read quickly."""

STAGES = ("clip", "prior", "draft", "decoder", "upsampler", "upsampler_2")
UPSAMPLERS = ("upsampler", "upsampler_2")
ASIDE = ("prior", *UPSAMPLERS)  # stages that the others don't stand on: these may train beside them
