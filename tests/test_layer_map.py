"""What each layer gives away: signals paired by layer, ranks with their intervals, the report."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxmeter as jm
from jaxmeter.calibrated_inference import by_place, stacked
from jaxmeter.parts import SeenBy


def network(layers, sizes, seed=0):
    """A tanh network with random weights whose layers have these names, in this order."""
    random = np.random.default_rng(seed)
    params = {
        f"{name}/kernel": random.normal(size=shape).astype("f")
        for name, shape in zip(layers, zip(sizes[:-1], sizes[1:], strict=True), strict=True)
    }

    def apply(params, state, x):
        outputs = {}
        for name in layers:
            x = outputs[name] = jnp.tanh(x) @ params[f"{name}/kernel"]
        return jm.Outputs(x, outputs)

    return jm.from_function(apply, params, input_shape=sizes[:1])


def random_records(n, d, classes, seed=0):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2 * n, d)).astype("f"), random.integers(0, classes, 2 * n)
    return jm.Records.of(members=(x[:n], y[:n]), nonmembers=(x[n:], y[n:]))


# --- Pairing ------------------------------------------------------------------------------------


def test_signals_of_target_and_references_are_paired_whatever_layers_are_called():
    """Each is a reference model of the other, under other names: their signals are the same."""
    target, data = network(("z", "dense_10", "a"), (5, 4, 6, 3)), random_records(20, 5, 3)
    names = ("log odds", "gradient norms", "alignment", "class distance")
    spec = jm.CalibratedInference(signals=names).reads(target).resolved(target)
    mine = jm.extract(target, data, spec).rows(slice(5, 30)).only(spec)
    models = jm.shadow.extract(jm.shadow.stack([target, target]), data, spec)
    theirs = SeenBy(models, np.ones((2, 40), bool)).rows(slice(5, 30)).signals
    observed, y = stacked(names, mine, data.y[5:30]), data.y[5:30]
    np.testing.assert_allclose(stacked(names, theirs, y), np.stack([observed] * 2), rtol=1e-6)
    distinct = {row.tobytes() for row in observed}
    assert len(distinct) == len(observed) - 1  # the last layer's outputs are the logits


def test_counted_names_keep_their_order():
    """A second model of a kind has its layers counted on: dense_9 and dense_10 for dense_1, _2."""
    first, second = network(("dense_1", "dense_2"), (5, 4, 3)), network(("dense_9", "dense_10"),
                                                                        (5, 4, 3))  # fmt: skip
    data, spec = random_records(10, 5, 3), jm.SignalSpec(gradient_norm=True)
    found = [by_place("gradient norms", jax.tree.map(lambda v: v, jm.extract(net, data, spec)),
                      data.y) for net in (first, second)]  # fmt: skip
    assert list(found[1]) == ["dense_9", "dense_10"]
    np.testing.assert_allclose(*[np.stack([*one.values()]) for one in found], rtol=1e-6)
