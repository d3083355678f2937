"""``python -m ntkfusion``."""

from ntkfusion.cli import main

if __name__ == "__main__":
    main()
