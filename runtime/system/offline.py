"""Programs of others, started by us, that would ask the network by themselves."""

NOWHERE = "http://127.0.0.1:9"  # a port where no ordinary user can listen
# With these in its environment a program asks no web server but this machine's. Lower case comes first.
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "localhost,127.0.0.1,::1"}
