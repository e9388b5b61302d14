"""Where organizers run this package: grand-challenge.org and Codabench, with their folders and files."""
