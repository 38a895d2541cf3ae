"""What a report says of the audit itself: versions and records."""

import platform
from importlib.metadata import version

from jaxmeter.attacks.interface import ReferenceSignals
from jaxmeter.auditing.references import References, Shadows


def described(
    references: References | Shadows | None, seen: ReferenceSignals | None, seconds: float
) -> dict[str, str]:
    """What reference models there were, for the report's settings."""
    if references is None or seen is None:
        return {}
    how = "given"
    if isinstance(references, Shadows):
        source = references.architecture.target.spec.source.origin
        how = f"trained as {source} by {references.recipe!r}"
    return {"references": f"{len(seen.was_member)} models, {how}, {seconds:.1f} s"}


def versions() -> tuple[tuple[str, str], ...]:
    """Python and the packages that a report names, with their versions."""
    packages = ("jaxmeter", "jax", "jaxlib", "flax", "optax", "numpy", "keras", "jax-privacy")
    return (("python", platform.python_version()), *((name, version(name)) for name in packages))
