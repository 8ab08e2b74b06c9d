"""What is said, and by which of the processes."""

import pytest
from conftest import launch


@pytest.mark.slow
def test_the_first_process_of_another_machine_says_what_is_wrong_there() -> None:
    flags = ["--model_name_or_path", "m", "--train_file", "only_on_the_first_machine.csv"]
    several = {"WORLD_SIZE": "4", "RANK": "2"}
    one, other = (launch(*flags, env=several | {"LOCAL_RANK": rank}) for rank in ("0", "1"))
    assert (one.returncode, other.returncode) == (2, 2)
    assert "there is no such file" in one.stderr
    assert other.stderr == ""
