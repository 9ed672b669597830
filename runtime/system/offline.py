"""Keeps other people's programs, which we start, from using the network on their own.

What the libraries inside our own processes would report is turned off in the package's `__init__`, before any
of them is imported.
"""

NOWHERE = "http://127.0.0.1:9"  # a port on which no ordinary user can listen
# With these in its environment a program contacts only this machine's web servers. Lower case comes first.
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "localhost,127.0.0.1,::1"}
