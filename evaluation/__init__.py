"""The organizers' metrics on displacement fields in challenge format. Shares no code with ``mcbo``."""
