"""``python -m ntkfusion``."""

from ntkfusion.commands.main import command

if __name__ == "__main__":
    command()
