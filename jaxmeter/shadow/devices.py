"""Which devices train which models."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

AXIS = "models"


class DeviceGroup(NamedTuple):
    """The devices that share the models.

    Attributes:
      devices: they.
      mesh: of them; None for a single one.
      everywhere: an array on each, whole.
      dealt: an array's rows dealt to them.
    """

    devices: tuple[jax.Device, ...]
    mesh: Mesh | None
    everywhere: Sharding
    dealt: Sharding


def device_group(devices: Sequence[jax.Device] | None) -> DeviceGroup:
    """The group of these devices; None for all of this process.

    Raises:
      ValueError: if there is none.
    """
    chosen = tuple(jax.local_devices() if devices is None else devices)
    if not chosen:
        raise ValueError("there is no device to train on: devices=().")
    if len(chosen) == 1:
        here = SingleDeviceSharding(chosen[0])
        return DeviceGroup(chosen, None, here, here)
    mesh = Mesh(np.array(chosen), (AXIS,))
    return DeviceGroup(
        chosen,
        mesh,
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(AXIS)),
    )
