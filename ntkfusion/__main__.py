"""``python -m ntkfusion``."""

from ntkfusion.cli import command

if __name__ == "__main__":
    command()
