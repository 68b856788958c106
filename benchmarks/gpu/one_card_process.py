"""One of the processes of the step `processes`: joins the others, which is to be refused."""

import sys

from segue.errors import SegueError
from training.distributed import check_gpus_distinct, init_distributed


def main(device: str) -> int:
    """Join on a card; `cpu` asks the same of processes that claim one card."""
    try:
        if device == "cpu":
            from torch.distributed.rendezvous import rendezvous

            store, rank, world = next(rendezvous("env://"))
            check_gpus_distinct(store, rank, world, "the same on both")
        else:
            with init_distributed(device) as processes:
                processes.barrier()
    except SegueError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
