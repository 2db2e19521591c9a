"""The mathematics of diffusion: noise tables, denoisers, guidance, samplers. Knows no network and no file."""
