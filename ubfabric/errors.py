"""The exceptions of ubfabric.

Every error a user can cause derives from :class:`UbfabricError` and carries one
line: where it is (file, key or row), what was found, what is allowed. The command
line prints that line and exits with code 2.
"""

from __future__ import annotations


class UbfabricError(Exception):
    """Root of all errors that ubfabric raises on purpose."""


class SpecError(UbfabricError):
    """A YAML specification has an unknown key, a bad value or a missing unit."""


class TopologyError(UbfabricError):
    """A topology graph lacks attributes, ports or connectivity."""


class TraceError(UbfabricError):
    """A trace of traffic or of requests is malformed or does not fit what it is for."""


class ResultError(UbfabricError):
    """A result folder is missing, incomplete or of another schema version."""


class BridgeError(UbfabricError):
    """The compiled ns-3 module or the ns3 package cannot be loaded."""


class SimulationError(UbfabricError):
    """A run ended with undelivered bytes or unfinished tasks."""


class UbfabricWarning(UserWarning):
    """Something that runs and is likely not meant, such as buffers too small for full rate."""
