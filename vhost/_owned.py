"""What is made in C and let go of once."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Owned"]

Ptr = TypeVar("Ptr")


class Owned(Generic[Ptr]):
    """Holds a pointer until it is closed; a subclass says how it is freed.

    Attributes:
        description: what it is, for messages.
    """

    description: str

    def __init__(self, ptr: Ptr) -> None:
        """`ptr` is owned from now on."""
        self._ptr: Ptr | None = ptr

    @property
    def ptr(self) -> Ptr:
        """What is in C.

        Raises:
            RuntimeError: it was closed.
        """
        if self._ptr is None:
            raise RuntimeError(f"{self.description} is closed")
        return self._ptr

    @property
    def is_open(self) -> bool:
        """It was not closed."""
        return self._ptr is not None

    def close(self) -> None:
        """Let go of everything. May be called again."""
        ptr, self._ptr = self._ptr, None
        if ptr is not None:
            self._free(ptr)

    def _free(self, ptr: Ptr) -> None:
        raise NotImplementedError
