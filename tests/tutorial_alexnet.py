"""ML Privacy Meter's AlexNet tutorial (2020), as its README and attack_alexnet.py have it.

Changed are the imports and how the model is loaded (a file of Keras 3 in place of TensorFlow 2.1's
folder). It runs in a folder that holds `alexnet_pretrained.keras`, `datasets/cifar100.txt` and
`datasets/cifar100_train.txt.npy`; `prepare` makes small ones of random images.
"""

from pathlib import Path

import keras
import numpy as np

import jaxmeter as jm
from jaxmeter import meter as ml_privacy_meter


def attack(epochs: int = 10, configurations: int = 3) -> list:
    # input_features should be changed according to the model
    input_shape = (32, 32, 3)

    # Load saved target model to attack
    cprefix = "alexnet_pretrained.keras"
    cmodelA = keras.models.load_model(cprefix)

    saved_path = "datasets/cifar100_train.txt.npy"
    dataset_path = "datasets/cifar100.txt"

    datahandlerA = ml_privacy_meter.utils.attack_data.attack_data(
        dataset_path=dataset_path,
        member_dataset_path=saved_path,
        batch_size=100,
        attack_percentage=10,
        input_shape=input_shape,
        normalization=True,
    )

    # Set means and standard deviations for normalization.
    # If unset, they are calculated from the dataset.
    datahandlerA.means, datahandlerA.stddevs = (
        [0.4914, 0.4822, 0.4465],
        [0.2023, 0.1994, 0.2010],
    )

    # 1. Whitebox attack - final layer gradients, final layer outputs, loss values and label values
    whitebox = ml_privacy_meter.attack.meminf.initialize(
        target_train_model=cmodelA,
        target_attack_model=cmodelA,
        train_datahandler=datahandlerA,
        attack_datahandler=datahandlerA,
        layers_to_exploit=[26],
        gradients_to_exploit=[6],
        device=None,
        epochs=epochs,
        model_name="whitebox1",
    )
    # 2. Whitebox attack - final two model layer outputs, loss values and label values
    outputs = ml_privacy_meter.attack.meminf.initialize(
        target_train_model=cmodelA,
        target_attack_model=cmodelA,
        train_datahandler=datahandlerA,
        attack_datahandler=datahandlerA,
        layers_to_exploit=[22, 26],
        device=None,
        epochs=epochs,
        model_name="whitebox2",
    )
    # 3. Blackbox attack - final layer output and label values
    blackbox = ml_privacy_meter.attack.meminf.initialize(
        target_train_model=cmodelA,
        target_attack_model=cmodelA,
        train_datahandler=datahandlerA,
        attack_datahandler=datahandlerA,
        layers_to_exploit=[26],
        exploit_loss=False,
        device=None,
        epochs=epochs,
        model_name="blackbox1",
    )
    attacks = [whitebox, outputs, blackbox][:configurations]
    for attackobj in attacks:
        attackobj.train_attack()
        attackobj.test_attack()
    return attacks


def alexnet(filters: tuple[int, ...] = (8, 8, 8, 8, 8), classes: int = 100) -> keras.Model:
    """An AlexNet of 26 layers, counted as the pretrained one of the tutorial, with few filters."""
    layers = keras.layers
    x = inputs = keras.Input((32, 32, 3))  # layer 1
    for i, (width, window) in enumerate(zip(filters, (5, 3, 3, 3, 3), strict=True)):
        x = layers.ZeroPadding2D(window // 2)(x)
        x = layers.ReLU()(layers.Conv2D(width, window, strides=4 if i == 0 else 1)(x))
        x = layers.MaxPooling2D(2)(x) if i in (0, 1, 4) else x
    x = layers.Flatten()(layers.Permute((3, 1, 2))(layers.Dropout(0.3)(x)))  # 20, 21, 22
    x = layers.Dense(classes)(layers.Dropout(0.3)(x))
    x = layers.Softmax()(layers.Activation("linear")(x))  # 25, 26
    return keras.Model(inputs, x)


def prepare(folder: Path, members: int, others: int, epochs: int) -> None:
    """The tutorial's files, of random images with random labels, to be memorised."""
    random = np.random.default_rng(0)
    n = members + others
    x = random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    records = jm.Records(x, random.integers(0, 4, n).astype(np.int32), np.arange(n) < members)
    (folder / "datasets").mkdir()
    jm.write_privacy_meter(
        folder / "datasets" / "cifar100.txt",
        records,
        folder / "datasets" / "cifar100_train.txt.npy",
    )
    keras.utils.set_random_seed(0)
    model = alexnet()
    assert len(model.layers) == 26
    means, stddevs = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    inside = ((x[:members] / 255 - means) / stddevs).astype(np.float32)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(inside, records.y[:members], batch_size=50, epochs=epochs, verbose=0)
    model.save(folder / "alexnet_pretrained.keras")


if __name__ == "__main__":
    attack()
