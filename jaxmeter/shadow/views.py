"""Views of a record: moved and mirrored, to train on and to ask about."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class MirrorAndShift:
    """Images mirrored with probability one half and shifted at random: the usual weak augmentation.

    Attributes:
      mirror: left to right, or not at all.
      shift: at most so many pixels each way.
      padding: what comes in at the edges.

    >>> MirrorAndShift(shift=1)(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 3)
    """

    mirror: bool = True
    shift: int = 4
    padding: Literal["reflect", "zeros"] = "reflect"

    def __call__(self, key: Array, x: Array) -> Array:
        """Images `x` `[b, height, width, channels]`, changed."""
        if x.ndim != 4:
            raise ValueError(
                f"MirrorAndShift takes images [b, height, width, channels], not {x.shape}."
            )
        n = len(x)
        mirror_key, shift_key = jax.random.split(key)
        if self.mirror:
            flips = jax.random.bernoulli(mirror_key, 0.5, (n, 1, 1, 1))
            x = jnp.where(flips, x[:, :, ::-1], x)
        if self.shift:
            by = jax.random.randint(shift_key, (n, 2), -self.shift, self.shift + 1)
            x = moved(x, by, self.shift, self.padding)
        return x


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at images; as it stands, the image itself.

    Attributes:
      mirror: left to right.
      down: pixels.
      right: pixels.
      padding: what comes in at the edges.

    >>> image = np.arange(4.0).reshape(1, 1, 4, 1)
    >>> View(right=1, padding="zeros")(image).ravel()
    array([0., 0., 1., 2.])
    """

    mirror: bool = False
    down: int = 0
    right: int = 0
    padding: Literal["reflect", "zeros"] = "reflect"

    def __call__(self, x: NDArray) -> NDArray:
        """Images `x` `[n, height, width, channels]` in this view; the same dtype."""
        x = np.asarray(x)
        if not (self.mirror or self.down or self.right):
            return x
        if x.ndim != 4:
            raise ValueError(
                f"records have shape {x.shape[1:]}, and a View other than the plain one takes "
                "images (height, width, channels). Query the records as they are: queries=()."
            )
        down, right = abs(self.down), abs(self.right)
        if down >= x.shape[1] or right >= x.shape[2]:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} cannot be shifted by {down} pixels down "
                f"or up and {right} to a side; a shift is smaller than the image."
            )
        x = x[:, :, ::-1] if self.mirror else x
        mode: Literal["reflect", "constant"] = (
            "reflect" if self.padding == "reflect" else "constant"
        )
        padded = np.pad(x, ((0, 0), (down, down), (right, right), (0, 0)), mode=mode)
        top, left = down - self.down, right - self.right
        return np.ascontiguousarray(padded[:, top : top + x.shape[1], left : left + x.shape[2]])


def views(mirror: bool = True, shift: int = 0) -> tuple[View, ...]:
    """The queries of LiRA (Carlini et al. 2022): the image, its mirror, and shifts of both.

    Two with `shift=0`; eighteen with a shift of so many pixels in each of eight directions, as
    models are best queried that were trained with `MirrorAndShift`. The plain view is the first.

    >>> len(views()), len(views(shift=4)), views(shift=4)[0] == View()
    (2, 18, True)
    """
    steps = (0, shift, -shift) if shift else (0,)
    return tuple(
        View(mirror=flipped, down=down, right=right)
        for down in steps
        for right in steps
        for flipped in ((False, True) if mirror else (False,))
    )


def moved(x: Array, by: Array, most: int, padding: Literal["reflect", "zeros"]) -> Array:
    """Images `[n, height, width, channels]`, each shifted by its own `(down, right)`, `[n, 2]`.

    No shift is larger than `most`.
    """
    height, width = x.shape[1:3]
    edges = ((0, 0), (most, most), (most, most), (0, 0))
    padded = jnp.pad(x, edges, mode="reflect" if padding == "reflect" else "constant")

    def one(image: Array, by: Array) -> Array:
        start = (most - by[0], most - by[1], 0)
        return lax.dynamic_slice(image, start, (height, width, image.shape[-1]))

    return jax.vmap(one)(padded, by)
