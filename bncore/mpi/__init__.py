"""bncore for MPI: moments of all ranks, and batch norm over a batch that they share.

What travels between ranks is `bncore.Moments` and `bncore.GradSums`, a few numbers per channel.
They merge in a tree that the number of ranks alone determines, so all ranks get the same bits,
however the ranks lie on the machines and in whatever order they arrive.  Importing this package
initializes MPI, as ``from mpi4py import MPI`` does.  `docs/mpi.md` shows how to use it.
"""

from bncore.extras import missing

try:
    import mpi4py  # noqa: F401  # the message below names what installs it
except ModuleNotFoundError as error:
    raise missing("mpi", "mpi4py", {"mpi4py"}, error) from None

from bncore.mpi.batch_norm import batch_norm_train, batch_norm_train_backward
from bncore.mpi.reduction import allreduce

__all__ = ["allreduce", "batch_norm_train", "batch_norm_train_backward"]
