"""Command line of infantxray.

    python main.py --config=configs/<task>.py [--workdir=DIR] [--config.key=value ...]

The same command again resumes an unfinished run; a finished one says so and stops.
"""

from infantxray.__main__ import console

if __name__ == "__main__":
    console()
