"""Purchase-100: ML Privacy Meter's fully connected network and its tutorial's configurations.

    python experiments/fcn_purchase100.py sweep
    python experiments/fcn_purchase100.py table --metrics auc tpr_at_0.01 accuracy test_accuracy

The 600-1024-512-256-128-100 tanh network of the tutorial, trained on 20,000 records; the attacks of
`fcn_location30.py`. They know 10,000 members and 10,000 non-members and are measured on as many
others.

The first run downloads dataset_purchase.tgz from https://github.com/privacytrustlab/datasets and
says its SHA-256; with `--data.sha256` no other is accepted. `--data.path` names a local file, the
archive or an `.npz` with x and y; without either purchase100.npz is looked for in the folder that
JAXMETER_DATA names.

Result and cost: not measured. Nobody has run this study on the published records yet, only on made
up ones of the same form (`tests/test_studies.py`), which say nothing about Purchase-100.
"""

from dataclasses import replace

import fcn_location30

from jaxmeter import experiment

BASE = replace(
    fcn_location30.BASE, study="fcn_purchase100", data=experiment.Purchase100(), overlap="drop"
)
AXES = {"seed": (0, 1, 2, 3, 4)}

if __name__ == "__main__":
    experiment.main(BASE, AXES)
