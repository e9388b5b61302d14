"""The judge: the organisers' metrics on displacement fields in challenge format. Shares no code with ``mcbo``."""
