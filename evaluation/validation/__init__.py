"""How a displacement may have been written by mistake, and the evidence for it."""
