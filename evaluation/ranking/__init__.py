"""How the challenge ranks methods: tests between them, and what follows from their outcomes."""
