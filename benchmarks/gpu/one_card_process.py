"""One of the processes of the step `processes`: joins the others, which is to be refused."""

import sys

from segue.errors import SegueError
from training.distributed import init_distributed, refuse_shared_gpu


def main(device: str) -> int:
    """Join on a card; `cpu` asks the same of processes that claim one card."""
    try:
        if device == "cpu":
            from torch.distributed.rendezvous import rendezvous

            store, rank, world = next(rendezvous("env://"))
            refuse_shared_gpu(store, rank, world, "the same on both")
        else:
            with init_distributed(device) as processes:
                processes.wait()
    except SegueError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
