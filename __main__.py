"""`python -m udean`, and what every `udean` command starts with; see runtime/commands/launch.py."""

from .runtime.commands.launch import main

if __name__ == "__main__":
    main()
