"""Which process this is, by the variables of launchers."""

import pytest

from msefpn.errors import UserError
from msefpn.runs.world import World, first_host, launched

USUAL = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "4120007",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World()),
        (USUAL, World(5, 8, 1, "a", 29500, "the launcher (WORLD_SIZE)")),
        (USUAL | TORCHRUN, World(5, 8, 1, "a", 29500, "torchrun", shared_store=True)),
        (USUAL | TORCHRUN | {"MSEFPN_STARTED_BY": "7"}, World(5, 8, 1, "a", 29500, "msefpn", parent=7)),
        (USUAL | {"RANK": "0", "WORLD_SIZE": "1"}, World()),
        (SLURM, World(5, 8, 1, "gpu03", 15007, "Slurm")),
        (SLURM | {"MASTER_ADDR": "b", "MASTER_PORT": "1"}, World(5, 8, 1, "b", 1, "Slurm")),
        (SLURM | USUAL, World(5, 8, 1, "a", 29500, "the launcher (WORLD_SIZE)")),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, World()),  # srun --pty bash
        ({key: value for key, value in SLURM.items() if "STEP" not in key}, World()),  # in sbatch's script
    ],
)
def test_the_launchers_variables(variables: dict[str, str], world: World) -> None:
    assert launched(variables) == world


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"MASTER_ADDR": ""}, "not MASTER_ADDR: set all four"),
        ({"RANK": "8"}, "says process 8 of 8"),
        ({"RANK": "one"}, "the variable RANK is 'one': it must be a whole number"),
    ],
)
def test_variables_that_do_not_fit(changed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        launched(USUAL | changed)


def test_the_first_host_of_slurms_list() -> None:
    lists = ("node[01-04,7]-ib,other", "a,b", "n[1,5]", "single", "")
    assert [first_host(nodes) for nodes in lists] == ["node01-ib", "a", "n1", "single", ""]
