"""``python -m mcbo``."""

from mcbo.cli.main import run

if __name__ == "__main__":
    run()
