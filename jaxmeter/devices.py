"""Which devices compute which rows of a batch of records."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

AXIS = "records"


class Devices(NamedTuple):
    """The devices that share a batch, and this process's place among them."""

    devices: tuple[jax.Device, ...]
    mesh: Mesh | None  # of this process's devices; None for a single one
    processes: int
    rank: int

    @property
    def here(self) -> int:
        """How many of them this process has."""
        return len(self.devices) // self.processes

    @property
    def alone(self) -> "Devices":
        """One of this process's devices, by itself."""
        return Devices((self._mine[0],), None, 1, 0)

    @property
    def _mine(self) -> list[jax.Device]:
        return [d for d in self.devices if d.process_index == jax.process_index()]

    @property
    def everywhere(self) -> Sharding:
        """An array on every device of this process, whole."""
        return self._placed(PartitionSpec())

    @property
    def dealt(self) -> Sharding:
        """An array's rows dealt to this process's devices."""
        return self._placed(PartitionSpec(AXIS))

    def _placed(self, spec: PartitionSpec) -> Sharding:
        if self.mesh is None:
            return SingleDeviceSharding(self._mine[0])
        return NamedSharding(self.mesh, spec)


def devices_for(devices: Sequence[jax.Device], n: int) -> Devices:
    """The devices for n records.

    Raises:
      ValueError: if no device belongs to this process; or if some belong to others, but not as many
        to each.
    """
    every = tuple(devices)
    here = jax.process_index()
    mine = [d for d in every if d.process_index == here]
    counts = {p: sum(d.process_index == p for d in every) for p in {d.process_index for d in every}}
    if len(counts) > 1 and (
        counts.keys() != set(range(jax.process_count())) or len(set(counts.values())) > 1
    ):
        raise ValueError(
            f"devices of processes {sorted(counts)}, {list(counts.values())} each, of "
            f"{jax.process_count()} processes: a collective extraction takes as many devices from "
            "every process. Pass jax.devices(), or jax.local_devices() to extract alone."
        )
    if not mine:
        raise ValueError(f"none of the {len(every)} devices belongs to this process ({here}).")
    if len(counts) == 1:
        every = tuple(mine[:n])  # fewer records than devices: the others stay idle
        mine = mine[:n]
    mesh = Mesh(np.array(mine), (AXIS,)) if len(mine) > 1 else None
    return Devices(every, mesh, len(counts), here if len(counts) > 1 else 0)
