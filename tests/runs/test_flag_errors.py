import pytest

from infantxray.runs.flag_errors import explain


@pytest.mark.parametrize(
    ("error", "argv", "expected"),
    [
        (
            AttributeError('\'batchsize\'\nDid you mean "batch_size" instead of "batchsize"?'),
            ["main.py", "--config=configs/finetune.py", "--config.batchsize=3"],
            "unknown setting --config.batchsize=3; did you mean --config.batch_size?",
        ),
        (
            KeyError("zzz"),
            ["main.py", "--config=configs/finetune.py", "--config.data.zzz=3"],
            "unknown setting --config.data.zzz=3; see the file in configs/",
        ),
        (
            KeyError("image_size"),
            ["main.py", "--config=configs/finetune.py", "--config.image_size=32"],
            "unknown setting --config.image_size=32; did you mean --config.data.image_size?",
        ),
        (
            KeyError("weight_deca"),
            ["main.py", "--config=configs/finetune.py:paper", "--config.weight_deca=1"],
            "unknown setting --config.weight_deca=1; did you mean --config.optimizer.weight_decay?",
        ),
        (
            KeyError("data"),
            [
                "main.py",
                "--config=configs/pretrain.py",
                "--config.data.train=folder:/a",
                "--config.zzz.data=folder:/a",
            ],
            "unknown setting --config.zzz.data=folder:/a; see the file in configs/",
        ),
        (
            KeyError("image_size"),
            ["main.py", "--config=configs/nowhere.py", "--config.image_size=32"],
            "unknown setting --config.image_size=32; see the file in configs/",
        ),
        (
            ValueError("flag --config.batch_size=many: invalid literal for int() with base 10"),
            [],
            "config.batch_size is 'many'; it must be a number (int)",
        ),
        (
            TypeError("get_config() takes 0 positional arguments but 1 was given"),
            [],
            "this configuration has no variants: leave out what follows the colon in --config",
        ),
        (
            ValueError("configs/finetune.py has the variants cpu and paper, not 'big'"),
            [],
            "configs/finetune.py has the variants cpu and paper, not 'big'",
        ),
    ],
)
def test_errors_of_the_command_line_become_one_line(error, argv, expected):
    assert explain(error, argv) == expected


def test_a_missing_config_file_lists_those_that_are_there():
    error = OSError(
        "No such file or directory: x\n  Attempted [Relative path]:\n    configs/finetun.py\n"
    )
    message = explain(error, [])
    assert message.startswith("configs/finetun.py does not exist; ")
    assert "configs/pretrain.py" in message
    assert "common.py" not in message
    assert message.endswith("did you mean configs/finetune.py?")
