"""The refusals of the Jobs API, as one exception that carries what goes over the wire.

The few wordings that several calls share are here too.
"""

from __future__ import annotations

_BAD_REQUEST = 400


class ApiError(Exception):
    """A refusal with its HTTP status, ``error_code`` and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message

    @property
    def body(self) -> dict[str, str]:
        """The answer's body."""
        return {"error_code": self.code, "message": self.message}


class LoginError(ApiError):
    """A refusal of the token endpoint, which answers as OAuth has it."""

    @property
    def body(self) -> dict[str, str]:
        """The answer's body."""
        return {"error": self.code, "error_description": self.message}


def invalid(message: str) -> ApiError:
    """The refusal that most calls answer with."""
    return ApiError(400, "INVALID_PARAMETER_VALUE", message)


def missing(message: str, status: int) -> ApiError:
    """The refusal of something that does not exist, in the form that goes with the status."""
    return invalid(message) if status == _BAD_REQUEST else ApiError(status, "RESOURCE_DOES_NOT_EXIST", message)


def malformed(message: str) -> ApiError:
    """The refusal of a body or query of the wrong shape."""
    return ApiError(400, "MALFORMED_REQUEST", f"Could not parse request object: {message}")
