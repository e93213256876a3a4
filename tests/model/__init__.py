"""A slow reference model of the device side of virtqueues, written from VIRTIO 1.3 (2.7, 2.8), for tests.

It shares nothing with the C: its own memory, its own walk, its own arithmetic, no limits but those of `ring.h`. Where
several things are wrong with one descriptor, every one of them is a right answer: `Bad.codes` is a set.
"""

from __future__ import annotations

from model.memory import Bad, Memory
from model.packed import PackedDevice
from model.split import SplitDevice
from model.walk import ModelChain

__all__ = ["Bad", "Memory", "ModelChain", "PackedDevice", "SplitDevice"]
