"""`python -m queue_kit` is the command line."""

from queue_kit.cli import main

if __name__ == "__main__":
    main(prog_name="queue-kit")
