"""The stages between an LR scan and its SR scan; `volume` lists them."""
