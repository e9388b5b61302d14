"""What is to be registered: Learn2Reg datasets, local or by URL."""
