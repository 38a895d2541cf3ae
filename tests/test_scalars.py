"""Scalars of a record against their definitions in float64, and what must not move them."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxmeter as jm
from helpers import assert_close, mlp_target, reference_gradients, some_records
from jaxmeter.attacks.white_box import stacked
from jaxmeter.gradients.factors import Products, TransposedOuter
from jaxmeter.gradients.per_example import of_loss
from jaxmeter.jaxpr.memory import tree_bytes
from jaxmeter.signals import SCALARS, context_of, plan
from jaxmeter.signals.program import _program
from jaxmeter.signals.scalars import context as scalars_context
from jaxmeter.signals.scalars.context import context_shapes
from jaxmeter.target import layer_of

OF_VECTORS = tuple(kind for kind in SCALARS if kind != "queries")
COMPARED = ("alignment", "mean cosine", "class distance")
OF_ANY_ORDER = (*COMPARED, "input norm")


def spec_of(*kinds, **others):
    nothing = {"outputs": (), "loss": False, "label": False}
    return jm.SignalSpec(scalars=kinds, **(nothing | others))


def scalars_of(target, records, *kinds, **options):
    return jm.extract(target, records, spec_of(*kinds), **options).scalars


@pytest.fixture(scope="module")
def mlp():
    """A net, records, and all scalars of these: one extraction for many tests."""
    target, records = mlp_target(), some_records(40, (6,), 4)
    return target, records, scalars_of(target, records, *OF_VECTORS)


def of_kind(found, kind):
    return {name: value for name, value in found.items() if name.startswith(kind)}


# --- the definition -------------------------------------------------------------------------------


def whitener(moments, diagonal):
    """A symmetric root of the inverse: another one than the program's, for the same products."""
    if diagonal:
        moments = np.diag(np.diag(moments))
    damped = moments + 0.1 * np.trace(moments) / len(moments) * np.eye(len(moments))
    values, vectors = np.linalg.eigh(damped)
    return vectors / np.sqrt(values) @ vectors.T


def alignment(inputs, errors, gradients, weights, p, widest=2048):
    """Of one variable: inputs `[n, B, T, i]`, errors of the loss `[n, B, T, o]`, both in float64,
    gradients `[n, B, i, o]`, weights `[B, i, o]`, probabilities of the own class `[n]`."""
    of_odds = errors / (1 - p)[:, None, None, None]
    white, kernels = np.zeros(gradients.shape), np.zeros(weights.shape)
    for b in range(len(weights)):
        left, right = (
            whitener(sum(one.T @ one for one in v[:, b]) / len(v), v.shape[-1] > widest)
            for v in (inputs, of_odds)
        )
        kernels[b] = left @ weights[b] @ right
        for i, gradient in enumerate(gradients[:, b]):
            white[i, b] = left @ gradient @ right
    products = -(white * kernels).sum(axis=(1, 2, 3))  # downhill
    return products / np.sqrt((white**2).sum(axis=(1, 2, 3)) * (kernels**2).sum())


def differentiated(forward, params, x, y):
    """In float64: what `forward(params, taps, x [n, ...]) -> (logits, inputs by layer)` says, and
    its inputs, errors at the taps, gradients and probabilities, one record after the other."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), params)
        x = jnp.asarray(x, "float64")
        shapes = jax.eval_shape(lambda: forward(params, {}, x[:1])[2])
        taps = {name: jnp.zeros(s.shape, "float64") for name, s in shapes.items()}

        @jax.jit
        def one(x, y):
            def loss(params, taps):
                logits, inputs, _ = forward(params, taps, x[None])
                return -jax.nn.log_softmax(logits[0])[y], (logits[0], inputs)

            (gradients, errors), (logits, inputs) = jax.grad(loss, (0, 1), has_aux=True)(
                params, taps
            )
            return (
                jax.tree.map(lambda leaf: leaf[0], (inputs, errors)),
                gradients,
                jax.nn.softmax(logits)[y],
            )

        rows = [one(a, b) for a, b in zip(x, y, strict=True)]
        (inputs, errors), gradients, p = jax.tree.map(lambda *v: np.stack(v), *rows)
    return inputs, errors, gradients, p


def dense_forward(names, activation=jnp.tanh, transposed=()):
    def forward(params, taps, x):
        inputs, outputs = {}, {}
        for i, name in enumerate(names):
            inputs[name] = x
            kernel = params[f"{name}/kernel"]
            z = x @ (kernel.T if name in transposed else kernel) + params[f"{name}/bias"]
            z = z + taps.get(name, 0)
            outputs[name] = z
            x = z if i == len(names) - 1 else activation(z)
        return x, inputs, outputs

    return forward


def dense_alignments(target, records, names, widest=2048, **options):
    forward = dense_forward(names, **options)
    inputs, errors, gradients, p = differentiated(forward, target.params, records.x, records.y)
    found = {}
    for name in names:
        a, d = inputs[name][:, None, None], errors[name][:, None, None]
        g, w = gradients[f"{name}/kernel"], np.asarray(target.params[f"{name}/kernel"], "float64")
        if name in options.get("transposed", ()):
            g, w = g.swapaxes(1, 2), w.T
        found[f"alignment {name}/kernel"] = alignment(a, d, g[:, None], w[None], p, widest)
    return found


def assert_same_scalars(found, expected, rtol=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.ptp(value) > 1e-2, f"{name} says nothing"
        assert_close(found[name], value, rtol)


def test_alignment_is_its_definition(mlp):
    target, records, found = mlp
    found = of_kind(found, "alignment")
    assert_same_scalars(found, dense_alignments(target, records, "abc"), 3e-5)
    assert all((np.abs(value) <= 1).all() for value in found.values())


def test_wide_layers_are_whitened_by_their_variances(mlp, monkeypatch):
    monkeypatch.setattr(scalars_context, "_WIDEST", 6)  # the kernels are 6 x 8, 8 x 7 and 7 x 4
    jax.clear_caches()
    target, records, full = mlp
    found = scalars_of(target, records, "alignment")
    expected = dense_alignments(target, records, "abc", widest=6)
    assert_same_scalars(found, expected, 3e-5)
    full = of_kind(full, "alignment")
    for name, value in full.items():
        assert np.abs(value - expected[name]).max() > 1e-3, "the rule decides nothing here"
    shapes = context_shapes(target.for_inputs((6,)), records.x, ("alignment",))
    assert shapes.whitening["a/kernel"].left.shape == (1, 6, 6)
    assert shapes.whitening["a/kernel"].right.shape == (1, 8)
    jax.clear_caches()  # of programs with the other rule


def test_kernels_that_are_stored_transposed(mlp):
    same, records, expected = mlp
    params = {k: np.asarray(v) for k, v in same.params.items()}
    params["b/kernel"] = np.ascontiguousarray(params["b/kernel"].T)
    forward = dense_forward("abc", transposed="b")
    with jax.numpy_rank_promotion("allow"):
        target = jm.from_function(lambda p, s, x: forward(p, {}, x)[0], params, input_shape=(6,))
        terms = of_loss(target.for_inputs((6,)), records.x[0], records.y[0], target.spec.variables)
        assert isinstance(terms[2]["b/kernel"], TransposedOuter)
        found = scalars_of(target, records, "alignment")
    assert_same_scalars(found, dense_alignments(target, records, "abc", transposed="b"), 3e-5)
    assert_same_scalars(found, of_kind(expected, "alignment"), 1e-5)


SIDE, CHANNELS = 6, 3


def convolutional():
    """A strided convolution, a depthwise one, a Dense layer, with random biases."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 2)),
            layers.Conv2D(
                CHANNELS, 3, strides=2, padding="same", activation="tanh", name="strided"
            ),
            layers.DepthwiseConv2D(2, padding="valid", activation="tanh", name="depthwise"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="last"),
        ]
    )
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(weight + 0.3 * keras.random.normal(weight.shape, seed=1))
    return jm.load_target(model)


def convolved(params, taps, x):
    """The same, and the positions' inputs: `x` cut into slices."""

    def patches(x, size, stride):
        there = range(0, x.shape[1] - size + 1, stride)
        return jnp.stack([x[:, i : i + size, j : j + size] for i in there for j in there], axis=1)

    one = patches(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), 3, 2)  # [n, positions, 3, 3, 2]
    z = jnp.einsum("npijc,ijco->npo", one, params["strided/kernel"]) + params["strided/bias"]
    z = z + taps.get("strided", 0)
    h = jnp.tanh(z).reshape(len(x), 3, 3, CHANNELS)
    two = patches(h, 2, 1)
    u = jnp.einsum("npijc,ijcm->npc", two, params["depthwise/kernel"]) + params["depthwise/bias"]
    u = u + taps.get("depthwise", 0)
    flat = jnp.tanh(u).reshape(len(x), -1)
    logits = flat @ params["last/kernel"] + params["last/bias"] + taps.get("last", 0)
    inputs = {"strided": one, "depthwise": two, "last": flat}
    return logits, inputs, {"strided": z, "depthwise": u, "last": logits}


@pytest.fixture(scope="module")
def conv():
    """The net, records, their scalars, and what the definitions need of them."""
    target, records = convolutional(), some_records(24, (SIDE, SIDE, 2), 4)
    found = scalars_of(target, records, *COMPARED)
    return target, records, found, differentiated(convolved, target.params, records.x, records.y)


def test_alignment_of_convolutions(conv):
    target, records, found, (inputs, errors, gradients, p) = conv
    terms = of_loss(
        target.for_inputs((SIDE, SIDE, 2)), records.x[0], records.y[0], target.spec.variables
    )[2]
    assert isinstance(terms["strided/kernel"], Products)
    assert isinstance(terms["depthwise/kernel"], jax.Array), "no product of rows: no alignment"
    weights = {k: np.asarray(v, "float64") for k, v in target.params.items()}
    n = len(records.y)
    expected = {
        "alignment strided/kernel": alignment(
            inputs["strided"].reshape(n, 1, 9, 18),
            errors["strided"][:, None],
            gradients["strided/kernel"].reshape(n, 1, 18, CHANNELS),
            weights["strided/kernel"].reshape(1, 18, CHANNELS),
            p,
        ),
        "alignment last/kernel": alignment(
            inputs["last"][:, None, None],
            errors["last"][:, None, None],
            gradients["last/kernel"][:, None],
            weights["last/kernel"][None],
            p,
        ),
    }
    assert_same_scalars(of_kind(found, "alignment"), expected, 1e-4)


def cosines(gradients):
    """By layer, of gradients `[n, ...]` by variable."""
    found = {}
    for layer in dict.fromkeys(map(layer_of, gradients)):
        mine = [np.asarray(g, "float64") for n, g in gradients.items() if layer_of(n) == layer]
        flat = np.concatenate([g.reshape(len(g), -1) for g in mine], axis=1)
        mean = flat.mean(axis=0)
        found[f"mean cosine {layer}"] = np.array(
            [g @ mean / np.linalg.norm(g) / np.linalg.norm(mean) for g in flat]
        )
    return found


def test_mean_cosine(conv):
    target, _, found, (_, _, gradients, _) = conv
    expected = cosines({name: gradients[name] for name in target.params})
    assert_same_scalars(of_kind(found, "mean cosine"), expected, 3e-5)


def test_mean_cosine_of_dense_layers(mlp):
    target, records, found = mlp
    expected = cosines(jm.per_example_gradients(target, records.x, records.y))
    assert_same_scalars(of_kind(found, "mean cosine"), expected, 3e-5)


def test_class_distance(conv):
    target, records, found, _ = conv
    out = target(records.x)
    expected = {}
    for layer in ("strided", "depthwise", "last", "logits"):
        value = np.asarray(out.logits if layer == "logits" else out.layers[layer], "float64")
        value = value.reshape(len(value), -1, value.shape[-1]).mean(axis=1)
        centres = [value[records.y == c].mean(axis=0) for c in range(4)]
        apart = [v - centres[y] for v, y in zip(value, records.y, strict=True)]
        expected[f"class distance {layer}"] = -np.log(np.linalg.norm(apart, axis=1))
    assert_same_scalars(of_kind(found, "class distance"), expected, 3e-5)


def test_input_norm(mlp):
    target, records, found = mlp
    params = {name: np.asarray(v) for name, v in target.params.items()}
    forward = dense_forward("abc")
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):

        def log_odds(x, y):
            p = jax.nn.softmax(forward(params, {}, x[None])[0][0])
            return jnp.log(p[y]) - jnp.log(1 - p[y])

        slopes = jax.vmap(jax.grad(log_odds))(jnp.asarray(records.x, "float64"), records.y)
        expected = -np.log(np.linalg.norm(slopes, axis=1))
    assert_close(found["input norm"], expected)


def test_queries_are_the_log_odds_of_views():
    target, records = convolutional(), some_records(8, (SIDE, SIDE, 2), 4)
    found = scalars_of(target, records, "queries")
    wide = np.pad(records.x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    views = {
        "mirror": records.x[:, :, ::-1],
        "down": wide[:, :-2, 1:-1],
        "up": wide[:, 2:, 1:-1],
        "right": wide[:, 1:-1, :-2],
        "left": wide[:, 1:-1, 2:],
    }
    assert sorted(found) == sorted(f"queries {name}" for name in views)
    for name, view in views.items():
        odds = jm.logits.log_odds(np.asarray(target(view).logits), records.y)
        assert_close(found[f"queries {name}"], odds)
    shifted = jm.shadow.View(down=1)(records.x)
    np.testing.assert_array_equal(shifted, views["down"])
    with pytest.raises(ValueError, match=r"shape \(6,\), .*there is no 'queries'"):
        jm.extract(mlp_target(), some_records(8, (6,), 4), spec_of("queries"))


def test_projections_are_those_of_the_gradient_over_its_length(mlp):
    target, records, found = mlp
    found = of_kind(found, "projections")
    assert list(found) == [f"projections {i}" for i in range(4)]
    whole = np.concatenate(
        [
            np.asarray(g).reshape(40, -1)
            for g in reference_gradients(target, records.x, records.y).values()
        ],
        axis=1,
    )
    projected = jm.directions.projections(target, records.x, records.y, seed=0, dimensions=4)
    expected = np.asarray(projected) / np.linalg.norm(whole, axis=1, keepdims=True)
    assert_close(np.stack(list(found.values()), axis=1), expected)


# --- what must not move them ----------------------------------------------------------------------


def assert_unmoved(found, expected, rtol=2e-5):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=rtol * max(1, np.abs(value).max()))


def test_any_order_of_units_gives_the_same_scalars(mlp):
    """But for projections, which are of coordinates and mean something under one model only."""
    target, records, expected = mlp
    random = np.random.default_rng(5)
    one, two = random.permutation(8), random.permutation(7)
    p = {name: np.asarray(value) for name, value in target.params.items()}
    moved = target.replace(
        params=p
        | {"a/kernel": p["a/kernel"][:, one], "a/bias": p["a/bias"][one]}
        | {"b/kernel": p["b/kernel"][one][:, two], "b/bias": p["b/bias"][two]}
        | {"c/kernel": p["c/kernel"][two]}
    )
    assert_close(moved(records.x).logits, target(records.x).logits, 1e-5)
    found = scalars_of(moved, records, *OF_VECTORS)
    free = [name for name in expected if not name.startswith("projections")]
    assert_unmoved({n: found[n] for n in free}, {n: expected[n] for n in free})
    assert np.abs(found["projections 0"] - expected["projections 0"]).max() > 0.1


def test_alignment_does_not_depend_on_the_scale_of_units_or_the_axes_of_inputs():
    """ReLU units times c whose outgoing weights are over c are the same function; so is a rotation
    of the records that the first kernel undoes."""
    random = np.random.default_rng(2)
    p = {
        "a/kernel": random.normal(size=(6, 8)), "a/bias": random.normal(size=8),
        "b/kernel": random.normal(size=(8, 4)), "b/bias": random.normal(size=4),
    }  # fmt: skip
    p = {name: value.astype("f") for name, value in p.items()}
    forward = dense_forward("ab", activation=jax.nn.relu)
    with jax.numpy_rank_promotion("allow"):
        target = jm.from_function(lambda p, s, x: forward(p, {}, x)[0], p, input_shape=(6,))
        records = some_records(50, (6,), 4)
        expected = scalars_of(target, records, "alignment", "input norm")
        scaled = (
            p | {k: 10 * p[k] for k in ("a/kernel", "a/bias")} | {"b/kernel": p["b/kernel"] / 10}
        )
        found = scalars_of(target.replace(params=scaled), records, "alignment", "input norm")
        assert_unmoved(found, expected)
        turn = np.linalg.qr(random.normal(size=(6, 6)))[0].astype("f")
        turned = target.replace(params=p | {"a/kernel": turn.T @ p["a/kernel"]})
        found = scalars_of(turned, records._replace(x=records.x @ turn), "alignment", "input norm")
        assert_unmoved(found, expected)


def test_neither_budgets_nor_the_order_of_records_nor_membership_matter(mlp):
    target, records, expected = mlp
    spec = spec_of(*OF_VECTORS)
    budget = plan(target, records.x[:8], spec).device_bytes
    assert plan(target, records.x, spec, device_budget=budget).batch == 8
    assert_unmoved(scalars_of(target, records, *OF_VECTORS, device_budget=budget), expected)
    least = context_of(target, records, spec, device_budget=1)  # one record after the other
    most = context_of(target, records, spec)
    for a, b in zip(jax.tree.leaves(least), jax.tree.leaves(most), strict=True):
        assert_close(a, b, 2e-5)
    order = np.random.default_rng(0).permutation(40)
    found = scalars_of(target, records.rows(order), *OF_VECTORS)
    assert_unmoved(found, {name: value[order] for name, value in expected.items()})
    other = records._replace(is_member=~records.is_member)
    for name, value in scalars_of(target, other, *OF_VECTORS).items():
        np.testing.assert_array_equal(value, expected[name])


# --- extraction -----------------------------------------------------------------------------------


def test_a_record_by_itself_needs_the_context(mlp):
    target, records, expected = mlp
    spec = spec_of(*OF_VECTORS)
    context = context_of(target, records, spec)
    one = jax.jit(lambda x, y: jm.of_example(target, x, y, spec, context))
    rows = [one(x, y) for x, y in zip(records.x[:5], records.y[:5], strict=True)]
    for name, value in expected.items():
        assert_close(np.stack([row.scalars[name] for row in rows]), value[:5], 3e-5)
    alone = jm.of_example(target, records.x[0], records.y[0], spec)  # nothing to compare with
    assert set(alone.scalars) == {"input norm", *(f"projections {i}" for i in range(4))}


def test_a_folder_holds_the_same_scalars(tmp_path, mlp):
    target, records, _ = mlp
    spec = spec_of(*OF_VECTORS)
    mapped = jm.extract(target, records, spec, out=tmp_path / "signals")
    whole = jm.extract(target, records, spec)
    assert jax.tree.structure(mapped) == jax.tree.structure(whole)
    assert list(mapped.scalars) == list(whole.scalars)
    jax.tree.map(np.testing.assert_array_equal, mapped, whole)
    again = jm.signals.load(tmp_path / "signals")
    np.testing.assert_array_equal(
        again.rows([3, 1]).scalars["input norm"], whole.scalars["input norm"][[3, 1]]
    )
    half = jm.extract(target, records, spec, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, half.scalars, whole.scalars)


def test_only_keeps_the_kinds_that_are_asked_for(mlp):
    target, records, _ = mlp
    both = jm.extract(target, records, spec_of(*OF_ANY_ORDER, loss=True))
    for kinds in (("input norm", "mean cosine"), ()):
        spec = spec_of(*kinds, loss=True).resolved(target)
        part, alone = both.only(spec), jm.extract(target, records, spec)
        assert list(part.scalars) == list(alone.scalars) and part.loss is not None
        assert_unmoved(part.scalars, alone.scalars)
    with pytest.raises(ValueError, match="asks for no signal at all"):
        spec_of().resolved(target)
    twice = spec_of("alignment", "alignment").resolved(target)
    other = spec_of("alignment", "projections").resolved(target)
    assert twice.union(other).scalars == ("alignment", "projections")


def test_kinds_are_checked():
    target, records = mlp_target(), some_records(8, (6,), 4)
    with pytest.raises(ValueError, match=r"no scalars \['alignement'\]; there are alignment, mean"):
        jm.extract(target, records, spec_of("alignement"))
    table = jm.from_function(
        lambda p, s, x: p["w"][x[:, 0]], {"w": np.eye(4, 3, dtype="f")}, input_dtype="int32"
    )
    tokens = jm.Records(np.arange(8)[:, None] % 4, np.arange(8) % 3, np.arange(8) < 4)
    with pytest.raises(ValueError, match="takes int32, .* there is no 'input norm'. Leave it out"):
        jm.extract(table, tokens, spec_of("input norm"))
    found = scalars_of(table, tokens, "alignment", "mean cosine")
    assert list(found) == ["mean cosine w"], "a table that is looked up has no kernel"
    expected = cosines(jm.per_example_gradients(table, tokens.x, tokens.y))
    assert_close(found["mean cosine w"], expected["mean cosine w"])
    held = jm.extract(table, tokens, spec_of("alignment", outputs=("logits",)))
    with pytest.raises(ValueError, match="hold no alignment.*Only kernels have an alignment"):
        stacked(("log odds", "alignment"), held, tokens.y)


def test_records_that_cannot_be_told_apart_are_finite():
    """All alike and fitted without error: nothing to be whitened by, no distance, no gradient."""
    target = jm.from_function(
        lambda p, s, x: x @ p["w"] + 0 * x[:, :1],
        {"w": 40 * np.eye(3, dtype="f")},
        input_shape=(3,),
    )
    x = np.tile(np.array([[1, 0, 0]], "f"), (6, 1))
    records = jm.Records(x, np.zeros(6, int), np.arange(6) < 3)
    for name, value in scalars_of(target, records, *OF_VECTORS).items():
        assert np.isfinite(value).all(), name


def test_the_plan_counts_what_records_are_compared_with(mlp):
    target, x = mlp[0], np.zeros((20, 6), "f")
    whitening = sum(i * i + o * o + i * o for i, o in ((6, 8), (8, 7), (7, 4)))
    mean = sum(v.size for v in target.params.values())
    centres = 4 * (8 + 7 + 4 + 4)
    sized = target.for_inputs((6,))
    for kind, numbers in zip(COMPARED, (whitening, mean, centres), strict=True):
        assert tree_bytes(context_shapes(sized, x, (kind,))) == 4 * numbers, kind
    every = 4 * (whitening + mean + centres)
    assert plan(target, x, spec_of(*COMPARED)).model_bytes == tree_bytes(target) + every
    context = context_of(target, some_records(20, (6,), 4), spec_of(*COMPARED))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(context)) == every
    with pytest.raises(ValueError, match="beside the target's .*device budget"):
        jm.extract(target, some_records(20, (6,), 4), spec_of(*COMPARED), device_budget=every)


def test_the_only_record_of_its_class_is_no_infinity(mlp):
    """Its distance to itself is rounding, whose log would be a number of any size."""
    target, records, _ = mlp
    y = np.where(np.arange(40) == 7, 3, records.y % 3)
    found = scalars_of(target, records._replace(y=y), "class distance")
    length = np.linalg.norm(target(records.x).logits[7])
    assert_close(found["class distance logits"][7], np.float32(-np.log(1e-5 * length)))


# --- of many models -------------------------------------------------------------------------------


def test_stacked_models_give_what_each_gives():
    targets = [mlp_target((6, 5, 4), seed=s) for s in range(2)]
    records = some_records(30, (6,), 4)
    spec = spec_of(*OF_VECTORS)
    together = jm.shadow.extract(jm.shadow.stack(targets), records, spec)
    for k, target in enumerate(targets):
        alone = jm.extract(target, records, spec)
        assert list(together.scalars) == list(alone.scalars)
        assert_unmoved({n: v[k] for n, v in together.scalars.items()}, alone.scalars)


def test_models_of_a_kind_share_one_program():
    traces = 0

    def apply(params, state, x):
        nonlocal traces
        traces += 1
        return jnp.tanh(x @ params["v"]) @ params["w"]

    def params(seed):
        random = np.random.default_rng(seed)
        return {
            "v": random.normal(size=(3, 4)).astype("f"),
            "w": random.normal(size=(4, 2)).astype("f"),
        }

    target, records = (
        jm.from_function(apply, params(0), input_shape=(3,)),
        some_records(40, (3,), 2),
    )
    spec = spec_of(*OF_ANY_ORDER)
    stack = jm.shadow.stack([target.replace(params=params(s)) for s in range(4)])
    jm.extract(jm.shadow.model(stack, 0), records, spec)
    before = traces, _program._cache_size(), scalars_context._summed._cache_size()
    jm.shadow.extract(stack, records, spec)
    jm.shadow.extract(stack, some_records(40, (3,), 2, seed=3), spec)
    assert (traces, _program._cache_size(), scalars_context._summed._cache_size()) == before
