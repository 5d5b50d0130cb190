"""The paper: diffusion process, encoder, loss and its terms, written once for every plugin. Nothing here does input or output."""
