"""A page in the browser to look at a run's results and judge them; the command is `udean-view`."""
