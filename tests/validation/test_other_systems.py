from pathlib import Path

import pytest
from checked_configs import FILES, rules_of

FOREIGN = sorted((FILES / "foreign").iterdir())


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.name)
def test_configs_of_other_projects_get_a_fitting_answer(path: Path) -> None:
    fitting = {
        "accelerate_deepspeed.yaml": {"deepspeed"},
        "accelerate_megatron.yaml": {"megatron-lm"},
        "accelerate_mpi_cpu.yaml": {"same-network-ignored"},
        "accelerate_old_wizard.yaml": {
            *("fsdp-version-missing", "fsdp-unknown-key", "fsdp-cpu-ram-efficient-loading"),
        },
        "accelerate_sagemaker.yaml": {"sagemaker"},
        "accelerate_tpu_pod.yaml": {"tpu", "tpu-keys-ignored", "commands-ignored"},
        "accelerate_xpu.yaml": {"other-device"},
        "axolotl.yaml": {"training-script"},
        "deepspeed_zero3.json": {"deepspeed-json"},
        "kubernetes.yaml": {"unknown-kind"},
        "llamafactory.yaml": {"training-script"},
        "torchtune.yaml": {"training-script"},
        "transformers_fsdp.json": {"transformers-fsdp"},
        "trl_script.yaml": {"training-script"},
    }
    assert rules_of(path) == fitting[path.name]
