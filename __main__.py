"""`python -m udean`, and what every `udean` command starts with; see runtime/commands/launch.py."""

from .runtime.system import interruption

interruption.end_at_once()  # before the imports, which take a while

from .runtime.commands.launch import main  # noqa: E402

if __name__ == "__main__":
    main()
