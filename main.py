"""Command line of infantxray: `python main.py --help`."""

from infantxray.__main__ import console

if __name__ == "__main__":
    console()
