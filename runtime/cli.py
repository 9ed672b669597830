"""`python -m udean.runtime.cli`: udean-run if its script is not installed or its package has moved."""

from .commands.run import main

if __name__ == "__main__":
    main()
