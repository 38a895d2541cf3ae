import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeter as jm
from helpers import assert_close
from jaxmeter.target import TargetSpec, resolve_layers, resolve_variables


def two_layers(seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    return {
        "hidden": {"kernel": normal(4, 6), "bias": normal(6)},
        "out": {"kernel": normal(6, 3), "bias": normal(3)},
    }


def forward(params, state, x):
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return h @ params["out"]["kernel"] + params["out"]["bias"][None]


def test_nested_params_are_named_and_handed_back_nested():
    params = two_layers()
    target = jm.from_function(forward, params, input_shape=(4,))
    x = np.ones((2, 4), np.float32)
    assert target.spec.variables == ("hidden/kernel", "hidden/bias", "out/kernel", "out/bias")
    assert_close(target(x).logits, forward(params, {}, x))


def test_flat_params_keep_their_names():
    params = {"z/w": np.eye(3, dtype=np.float32), "a": np.ones(3, np.float32)}
    target = jm.from_function(lambda p, s, x: x @ p["z/w"] + p["a"][None], params)
    assert target.spec.variables == ("z/w", "a")
    assert target.spec.trainable_layers == ("z", "a")
    assert target(np.zeros((1, 3))).logits.tolist() == [[1, 1, 1]]


def test_outputs_keep_their_layers_in_order():
    def apply(params, state, x):
        h = x @ params["w"]
        return jm.Outputs(h, {"zebra": x, "ant": h})

    target = jm.from_function(apply, {"w": np.eye(3, dtype=np.float32)}, input_shape=(3,))
    assert target.spec.layers == ("zebra", "ant")
    assert list(target(np.ones((2, 3))).layers) == ["zebra", "ant"]


def test_state_reaches_apply_and_both_are_copied():
    w, shift = np.eye(3, dtype=np.float32), np.ones(3, np.float32)
    target = jm.from_function(
        lambda p, s, x: x @ p["w"] + s["shift"][None], {"w": w}, {"shift": shift}
    )
    w[:] = 7
    shift[:] = 7
    assert target(np.zeros((1, 3))).logits.tolist() == [[1, 1, 1]]
    assert target.params["w"].tolist() == np.eye(3).tolist()


def test_params_survive_donation_of_the_originals():
    w = jnp.eye(3)
    target = jm.from_function(lambda p, s, x: x @ p["w"], {"w": w})
    w.delete()
    assert target(np.ones((1, 3))).logits.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("params", [[np.eye(2)], np.eye(2), None])
def test_params_must_be_a_dict(params):
    with pytest.raises(TypeError, match="dict of arrays"):
        jm.from_function(lambda p, s, x: x, params)


def test_params_must_be_arrays():
    with pytest.raises(TypeError, match=r"params\['a/w'\] is a float"):
        jm.from_function(lambda p, s, x: x, {"a": {"w": 1.0}})


def test_for_inputs_refuses_other_shapes():
    target = jm.from_function(forward, two_layers(), input_shape=(4,))
    with pytest.raises(ValueError, match=r"shape \(5,\), but the target takes \(4,\)"):
        target.for_inputs((5,))
    with pytest.raises(ValueError, match="cannot be applied to records of shape"):
        jm.from_function(forward, two_layers(), input_shape=(5,))


def test_for_inputs_refuses_what_is_no_classifier():
    for params in ({"w": np.ones((4, 1), np.float32)}, {"w": np.ones((4,), np.float32)}):
        with pytest.raises(ValueError, match="a classifier gives"):
            jm.from_function(lambda p, s, x: x @ p["w"], params, input_shape=(4,))


# --- names --------------------------------------------------------------------------------------


def spec():
    return TargetSpec(
        input_shape=(4,),
        n_classes=3,
        layers=("dense_1", "dense_2", "dense_10"),
        variables=("dense_1/kernel", "dense_1/bias", "lstm/cell/kernel", "lstm/cell/bias"),
    )


def test_layers_by_name_and_by_number_from_one():
    assert resolve_layers(spec(), (1, "dense_10", "logits")) == ("dense_1", "dense_10", "logits")


def test_variables_by_name_layer_number_and_all():
    assert resolve_variables(spec(), None) == spec().variables
    assert resolve_variables(spec(), ("dense_1",)) == ("dense_1/kernel", "dense_1/bias")
    assert resolve_variables(spec(), (2,)) == ("lstm/cell/kernel", "lstm/cell/bias")
    assert resolve_variables(spec(), ("lstm",)) == ("lstm/cell/kernel", "lstm/cell/bias")
    assert resolve_variables(spec(), ("dense_1/bias", 1)) == ("dense_1/bias", "dense_1/kernel")


@pytest.mark.parametrize(
    ("resolve", "name", "message"),
    [
        (resolve_layers, "dense2", r"no layer 'dense2'. Did you mean .*'dense_2'.*1: dense_1, 2:"),
        (resolve_layers, 0, r"no layer number 0; there are 1: dense_1, 2: dense_2, 3: dense_10"),
        (resolve_layers, 4, "no layer number 4"),
        (resolve_variables, "dense_1/kernl", r"Did you mean .*'dense_1/kernel'"),
        (resolve_variables, 3, r"no trainable layer number 3; there are 1: dense_1, 2: lstm/cell"),
        (resolve_variables, True, "no trainable layer True"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(resolve, name, message):
    with pytest.raises(ValueError, match=message):
        resolve(spec(), (name,))


# --- flax ---------------------------------------------------------------------------------------


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(6, name="zeta")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = Block(name="block")(nn.relu(x))
        return nn.Dense(3, name="alpha")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(6, name="twice")
        return dense(dense(x))


@pytest.fixture(scope="module")
def flax_pair():
    x = jax.random.normal(jax.random.key(0), (8, 4))
    with jax.numpy_rank_promotion("allow"):
        variables = Net().init(jax.random.key(1), x)
        _, moved = Net().apply(variables, 3 * x + 1, train=True, mutable=["batch_stats"])
        variables = {**variables, **moved}
        return variables, jm.from_flax(Net(), variables, train=False, input_shape=(4,)), x


def test_flax_output_in_inference_mode(flax_pair):
    variables, target, x = flax_pair
    assert_close(target(x).logits, Net().apply(variables, x, train=False))
    assert_close(target(x[:1]).logits, target(x).logits[:1])
    assert "batch_stats" in target.state


def test_flax_layers_in_model_order(flax_pair):
    variables, target, x = flax_pair
    assert target.spec.layers == ("zeta", "norm", "block/twice", "block", "alpha")
    out = target(x)
    assert list(out.layers) == list(target.spec.layers)
    kernel, bias = variables["params"]["zeta"]["kernel"], variables["params"]["zeta"]["bias"]
    assert_close(out.layers["zeta"], x @ kernel + bias[None])
    np.testing.assert_array_equal(out.layers["alpha"], out.logits)


def test_flax_shared_module_gives_its_last_output(flax_pair):
    _, target, x = flax_pair
    layers = target(x).layers
    np.testing.assert_array_equal(layers["block/twice"], layers["block"])


def test_flax_gradients_are_those_of_the_module(flax_pair):
    variables, target, x = flax_pair
    y = jnp.arange(8) % 3

    def loss(params, x, y):
        logits = Net().apply({**variables, "params": params}, x[None], train=False)[0]
        return -jax.nn.log_softmax(logits)[y]

    expected = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(variables["params"], x, y)
    found = jm.per_example_gradients(target, x, y)
    assert "block/twice/kernel" in found
    for name, gradient in found.items():
        reference = expected
        for part in name.split("/"):
            reference = reference[part]
        assert_close(gradient, reference, err_msg=name)


def test_flax_needs_all_collections(flax_pair):
    variables, _, _ = flax_pair
    with pytest.raises(ValueError, match="no 'params': pass what module.init returned"):
        jm.from_flax(Net(), variables["params"])


# --- as a pytree --------------------------------------------------------------------------------


def test_stacked_targets_are_a_target():
    targets = [jm.from_function(forward, two_layers(seed), input_shape=(4,)) for seed in range(3)]
    stacked = targets[0].replace(
        params=jax.tree.map(lambda *a: jnp.stack(a), *(t.params for t in targets))
    )
    x = jnp.ones((5, 4))
    out = jax.vmap(lambda target: target(x).logits)(stacked)
    for i, target in enumerate(targets):
        assert_close(out[i], target(x).logits)


def test_second_call_does_not_retrace():
    traces = []

    def counted(params, state, x):
        traces.append(x.shape)
        return forward(params, state, x)

    target = jm.from_function(counted, two_layers())
    call = jax.jit(lambda target, x: target(x))
    call(target, jnp.ones((2, 4)))
    call(target.replace(params=jax.tree.map(jnp.zeros_like, target.params)), jnp.zeros((2, 4)))
    assert traces == [(2, 4)]
