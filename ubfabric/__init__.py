"""Packet-level simulation of AI supernode fabrics, from the wire to the token."""
