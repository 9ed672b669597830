"""What a volume goes through between a scan and its SR scan; `volume` has the list."""
