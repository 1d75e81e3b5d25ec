"""A command under torchrun that fails on rank 1 alone while the others wait for it."""

from tutelage import cli, dist
from tutelage.errors import UserError


def run(config: object) -> None:
    """Fail on rank 1; wait for it on the others."""
    if dist.rank() == 1:
        raise UserError("a disk of this machine is gone")
    dist.together(lambda: None)


if __name__ == "__main__":
    import tutelage.recipes.sft as sft

    sft.run = run
    cli.main(["sft", "--ckpt_paths", "model", "--train_data_paths", "jsonl:chats.jsonl"])
