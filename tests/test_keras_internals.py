"""One test a private name: it does what `jaxmeter.intake.keras.internals` says of it.

A failure names what this release of Keras, tf_keras or TensorFlow has changed, to be mended in
`jaxmeter/intake/keras/internals.py` and nowhere else.
"""

import ast
import copy
import importlib.util
import re
from contextlib import contextmanager

import jax
import keras
import numpy as np
import pytest
from conftest import REPOSITORY

from jaxmeter.intake import frameworks
from jaxmeter.intake.keras import internals

L = keras.layers
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="an extra"
)


@contextmanager
def using(name: str, package: str = "keras"):
    version = importlib.import_module(package).__version__
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"{package} {version} has {name!r} no more, or it does something else than "
            f"jaxmeter.intake.keras.internals says of it: {type(error).__name__}: {error}"
        ) from error


@pytest.fixture(autouse=True)
def as_keras_computes():
    with jax.numpy_rank_promotion("allow"):
        yield


def functional(*layers):
    x = keras.Input((3,))
    y = x
    for layer in layers:
        y = layer(y)
    return keras.Model(x, y)


# --- Keras 3: graphs of operations --------------------------------------------------------------


def test_functional():
    with using("Functional"):
        assert isinstance(functional(L.Dense(2)), internals.functional())
        assert not isinstance(keras.Model(), internals.functional())


def test_functional_of_sequential():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    with using("Sequential._functional"):
        assert isinstance(internals.sequential_graph(model), internals.functional())
        assert internals.sequential_graph(model).layers[-1] is model.layers[-1]


def test_run_through_graph():
    model, run = functional(L.Dense(4), L.Dense(2)), []

    def noted(operation):
        run.append(operation)
        return operation

    x = np.ones((2, 3), "float32")
    with using("_run_through_graph"):
        out = internals.run_graph(model, keras.ops.convert_to_tensor(x), noted)
        np.testing.assert_array_equal(np.ravel(out), np.ravel(model(x)))
        assert run == model.layers[1:]


def test_standardize_inputs():
    model = functional(L.Dense(2))
    with using("_standardize_inputs"):
        (x,) = internals.standardized(model, np.ones((2, 3), "float32"))
        assert keras.ops.is_tensor(x)
        assert x.shape == (2, 3)


def test_call_has_training_arg():
    with using("_call_has_training_arg"):
        assert internals.takes_training(L.Dropout(0.5))
        assert not internals.takes_training(L.ReLU())
        graph = functional(keras.ops.exp)
        assert not any(internals.takes_training(operation) for operation in graph.operations)


def test_module_of_nn_operations():
    x = keras.Input((3,))
    graph = keras.Model(x, keras.ops.softmax(keras.ops.exp(x)))
    with using("keras.src.ops.nn"):
        kinds = {type(op).__name__: internals.is_nn_operation(op) for op in graph.operations}
        assert kinds == {"InputLayer": False, "Exp": False, "Softmax": True}


def test_tracked_list():
    layer = L.Layer()
    layer.held = [L.Dense(2)]
    with using("TrackedList"):
        assert type(layer.held) is list or internals.is_tracked_list(layer.held)
        assert type(layer.held) is not list, "lists are kept as they are: is_tracked_list may go"
        assert not internals.is_tracked_list((1, 2))


# --- Keras 3: layers and variables --------------------------------------------------------------


def test_flatten_layers():
    inner = keras.Sequential([L.Dense(2)])
    model = functional(L.Dense(4), inner)
    with using("_flatten_layers"):
        assert internals.all_layers(model)[0] is model
        assert inner.layers[0] in internals.all_layers(model)
        assert internals.inner_layers(model) == model.layers
        both = L.Bidirectional(L.LSTM(2))
        assert {both.forward_layer, both.backward_layer} <= {*internals.inner_layers(both)}


def test_trainable_variables():
    layer = L.BatchNormalization()
    layer.build((None, 3))
    layer.trainable = False
    model = functional(L.Dense(2))
    with using("_trainable_variables"):
        assert internals.trained_variables(layer) == [layer.gamma, layer.beta]
        assert internals.trained_variables(model) == []


def test_non_trainable_variables():
    layer = L.BatchNormalization()
    layer.build((None, 3))
    with using("_non_trainable_variables"):
        assert internals.other_variables(layer) == [layer.moving_mean, layer.moving_variance]
        assert internals.other_variables(functional(L.BatchNormalization())) == []


def test_seed_generators():
    layer = L.Dropout(0.5)
    with using("_seed_generators"):
        assert internals.seed_generators(layer) == [layer.seed_generator]
        assert internals.seed_generators(functional(L.Dropout(0.5))) == []


def test_build_shapes_dict():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    with using("_build_shapes_dict"):
        assert internals.built_shapes(model) == {}
        model(np.ones((2, 3), "float32"))
        assert [tuple(shape) for shape in internals.built_shapes(model).values()] == [(2, 3)]


def test_initializer():
    ones = keras.initializers.Ones()
    with using("_initializer"), keras.StatelessScope():
        assert internals.initialiser(keras.Variable(ones, shape=(2,))) is ones


# --- Keras 3: while a model is built ------------------------------------------------------------


def test_initialize_with_initializer(monkeypatch):
    drawn = []
    with using(internals.DRAW):
        plain = getattr(keras.Variable, internals.DRAW)

        def draw(self, initializer):
            drawn.append((self, initializer))
            plain(self, initializer)

        monkeypatch.setattr(keras.Variable, internals.DRAW, draw)
        ones = keras.initializers.Ones()
        variable = keras.Variable(ones, shape=(2,))
        assert [id(part) for part in drawn[0]] == [id(variable), id(ones)]


def test_deserialize_node(monkeypatch):
    made, model = [], functional(L.Dense(4), L.Dense(2))
    with using("deserialize_node"):
        module, name = internals.node_maker()
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: made.append(args) or plain(*args))
        keras.Model.from_config(model.get_config())
        assert len(made) == 2


def test_shape_and_dtype():
    variable = keras.Variable(np.ones((2, 3)), dtype="float32")
    with using("_shape, _dtype"):
        assert internals.declared(variable) == ((2, 3), "float32")


def test_layout():
    with using("_layout"):
        assert not internals.is_distributed(keras.Variable(np.ones(2)))


def test_initialize(monkeypatch):
    value = keras.ops.ones((2,))
    with using("_initialize, _value"):
        monkeypatch.setattr(
            keras.Variable, internals.DRAW, lambda self, _: internals.set_first_value(self, value)
        )
        variable = keras.Variable("zeros", shape=(2,), dtype="float32")
        assert internals.value_held(variable) is value


def test_value():
    value = keras.ops.ones((2,))
    variable = keras.Variable(value)
    with using("_value"):
        variable.assign(2 * value)
        np.testing.assert_array_equal(internals.value_held(variable), [2, 2])


def test_json_utils_tf(monkeypatch):
    """A config's shape is read by TensorFlow's class where it is there, and else as a list."""
    with using("json_utils.tf"):
        json_utils = importlib.import_module("keras.src.legacy.saving.json_utils")
        asked = []

        class Asked:
            @property
            def available(self):
                asked.append(True)
                return False

        monkeypatch.setattr(json_utils, "tf", Asked())
        json_utils.decode('{"a": {"class_name": "b"}}')
        assert asked, "reading a config asks for TensorFlow no more: the function may go"
        del asked[:]
        with internals.h5_without_tensorflow():
            json_utils.decode('{"a": {"class_name": "b"}}')
        assert not asked


# --- global state -------------------------------------------------------------------------------


def test_custom_objects_scope_dict():
    with using("custom_objects_scope_dict"):
        assert "Ours" not in internals.custom_objects_in_scope()
        with keras.saving.custom_object_scope({"Ours": L.Dense}):
            assert internals.custom_objects_in_scope()["Ours"] is L.Dense


def test_global_seed_generator():
    with using("global_seed_generator"):
        before = keras.random.uniform((3,))
        generator = internals.global_seed_generator()
        stands = np.asarray(generator.state.value)
        first = keras.random.uniform((3,))
        generator.state.assign(stands)
        np.testing.assert_array_equal(keras.random.uniform((3,)), first)
        assert not np.array_equal(before, first)


# --- tf_keras -----------------------------------------------------------------------------------


@pytest.fixture(name="tf")
def tf_fixture():
    return frameworks.tensorflow("a test")


@pytest.fixture(name="old")
def old_fixture(tf):
    return importlib.import_module("tf_keras")


@needs_tensorflow
def test_tf_keras_scope(old):
    with using("_THREAD_LOCAL_CUSTOM_OBJECTS", "tf_keras"):
        assert "Ours" not in internals.tf_keras_objects_in_scope()
        with old.utils.custom_object_scope({"Ours": old.layers.Dense}):
            assert internals.tf_keras_objects_in_scope()["Ours"] is old.layers.Dense


def ids(variables):
    return [id(variable) for variable in variables]


@needs_tensorflow
def test_tf_keras_weights(old):
    layer = old.layers.BatchNormalization()
    layer.build((None, 3))
    layer.trainable = False
    model = old.Sequential([layer])
    with using("_trainable_weights, _non_trainable_weights", "tf_keras"):
        trained, others = internals.tf_keras_weights(layer)
        assert ids(trained) == ids([layer.gamma, layer.beta])
        assert ids(others) == ids([layer.moving_mean, layer.moving_variance])
        assert internals.tf_keras_weights(model) == ([], [])


@needs_tensorflow
def test_tf_keras_flatten_layers(old):
    inner = old.layers.Dense(2)
    model = old.Sequential([old.layers.Input((3,)), old.Sequential([inner])])
    with using("_flatten_layers", "tf_keras"):
        assert internals.all_layers(model)[0] is model
        assert any(layer is inner for layer in internals.all_layers(model))
        assert not any(layer is inner for layer in internals.inner_layers(model))
        assert any(layer is model.layers[0] for layer in internals.inner_layers(model))


@needs_tensorflow
def test_is_graph_network(old):
    class Own(old.Model):
        pass

    x = old.Input((3,))
    with using("_is_graph_network", "tf_keras"):
        assert internals.is_tf_keras_graph(old.Model(x, old.layers.Dense(2)(x)))
        assert not internals.is_tf_keras_graph(Own())
        assert not internals.is_tf_keras_graph(old.layers.Dense(2))


@needs_tensorflow
def test_build_input_shape(old):
    class Own(old.Model):
        def call(self, x):
            return x

    model = Own()
    with using("_build_input_shape", "tf_keras"):
        assert internals.tf_keras_built_shape(model) is None
        model.build((None, 3))
        assert tuple(internals.tf_keras_built_shape(model)) == (None, 3)


@needs_tensorflow
def test_revived_network_and_saved_metadata(old, tmp_path):
    @old.saving.register_keras_serializable("ours")
    class Passing(old.Model):
        def call(self, x):
            return 2 * x

        def get_config(self):
            return {}

    model = Passing()
    model(np.ones((2, 3), "float32"))
    with frameworks.undisturbed():
        model.save(tmp_path, save_format="tf")
    for name in list(old.saving.get_custom_objects()):
        if name.endswith("Passing"):
            del old.saving.get_custom_objects()[name]
    with using("RevivedNetwork", "tf_keras"), frameworks.undisturbed():
        assert internals.is_revived(old.models.load_model(tmp_path, compile=False))
        assert not internals.is_revived(model)
    with using("SavedMetadata", "tf_keras"):
        message = internals.saved_metadata()
        message.ParseFromString((tmp_path / "keras_metadata.pb").read_bytes())
        assert "ours>Passing" in message.nodes[0].metadata


@needs_tensorflow
def test_builtin_layers_and_metrics(tf):
    with using("get_builtin_layer, tf_keras.src.metrics", "tf_keras"):
        assert internals.tf_keras_has("Dense")
        assert internals.tf_keras_has("MeanMetricWrapper")
        assert not internals.tf_keras_has("Ours")


# --- TensorFlow ---------------------------------------------------------------------------------


@needs_tensorflow
def test_seeds_of_context(tf):
    def seeds():
        return tf.compat.v1.random.get_seed(None)

    tf.random.set_seed(0)
    with using("_rng", "tensorflow"):
        seeds()
        context = internals.tensorflow_context()
        before = copy.deepcopy(internals.seeds_of(context))
        first = seeds()
        assert seeds() != first
        internals.set_seeds(context, before)
        assert seeds() == first


@needs_tensorflow
def test_convert_variables_to_constants_v2(tf):
    variable = tf.Variable([1.0, 2.0])
    function = tf.function(lambda x: x * variable).get_concrete_function(tf.TensorSpec((2,)))
    with using("convert_variables_to_constants_v2", "tensorflow"):
        found = internals.frozen(function)
        assert not found.graph.variables
        np.testing.assert_array_equal(found(tf.ones(2))[0].numpy(), [1, 2])


@needs_tensorflow
def test_op_def_registry(tf):
    with using("op_def_registry", "tensorflow"):
        assert internals.is_operation("MatMul")
        assert not internals.is_operation("Ours")


# --- nobody else --------------------------------------------------------------------------------

PACKAGE = REPOSITORY / "jaxmeter"
ROOMS = re.compile(r"keras\.(src|protobuf)\b|tensorflow\.python\b|jax\._src\b")
# Private, and of Python and matplotlib.
OTHERS = {"_replace", "_asdict", "_fields", "_exit", "_is_protocol", "_legend_box"}


def private(name):
    return name.startswith("_") and not name.endswith("__")


def own_names(tree):
    """The private names that a file's own classes have."""
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(kind):
            if isinstance(node, ast.FunctionDef):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
            elif isinstance(node, ast.AnnAssign):
                yield ast.unparse(node.target)


def foreign_names(source):
    """The private names in a file that none of its classes has: others' attributes, and modules."""
    tree = ast.parse(source)
    names, modules = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            names.update(part.value for part in node.args[1:2] if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            modules.add(node.value)
    own = {*own_names(tree)} | OTHERS
    found = {name for name in names if private(name)} - own
    return found | {module for module in modules if ROOMS.match(module.removeprefix("tf_"))}


def test_no_other_file_has_a_private_name():
    odd = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := foreign_names(path.read_text("utf-8")))
    }
    names = odd.pop("intake/keras/internals.py")
    assert {"_flatten_layers", "_is_graph_network", "keras.src.models.functional"} <= names
    assert not odd, "what is private belongs in jaxmeter/intake/keras/internals.py"


@pytest.mark.parametrize(
    "source",
    [
        "import keras.src.models",
        "from keras.src import backend",
        "from tensorflow.python.eager import context",
        "import importlib; importlib.import_module('tf_keras.src.metrics')",
        "def f(layer): return layer._layers",
        "def f(layer): return getattr(layer, '_layers', ())",
        "class C:\n    def f(self, layer): return layer._layers",
    ],
)
def test_a_private_name_is_noticed(source):
    assert len(foreign_names(source)) == 1
    assert not foreign_names("class C:\n    def _a(self): self._b = 1; return self._a, self._b")
