"""Normalize an (N, C) table in place by calling the C functions of bncore directly."""

from bncore cimport (
    BNCORE_ABI_VERSION,
    BNCORE_FLOAT64,
    BNCORE_OK,
    bncore_abi_version,
    bncore_problem,
    bncore_problem_init,
    bncore_status,
    bncore_status_string,
    bncore_train,
)

if bncore_abi_version() != BNCORE_ABI_VERSION:
    raise ImportError("standardize was compiled against another bncore: compile it again")


def standardize(double[:, ::1] table, double[::1] mean, double[::1] m2, double eps=1e-5):
    """Normalize every column of `table`, and fill `mean` and `m2` with one value for each column."""
    if mean.shape[0] != table.shape[1] or m2.shape[0] != table.shape[1]:
        raise ValueError("mean, m2: expected one value for each column of table")
    if table.shape[0] == 0 or table.shape[1] == 0:
        return
    cdef bncore_problem problem
    cdef bncore_status status
    with nogil:
        status = bncore_problem_init(&problem, sizeof(bncore_problem), BNCORE_FLOAT64,
                                     table.shape[0], table.shape[1], 1)
        problem.eps = eps
        if status == BNCORE_OK:
            status = bncore_train(&problem, &table[0, 0], &mean[0], &m2[0], &table[0, 0], NULL, NULL)
    if status != BNCORE_OK:
        raise ValueError(bncore_status_string(status).decode())
