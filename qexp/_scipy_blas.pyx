"""Bridge to the BLAS and LAPACK entry points that SciPy exports to Cython.

SciPy publishes them in capsules whose name is the C signature. That name has changed before, and
calling through a pointer of another signature corrupts memory, so only the spellings known below
are accepted. They differ in the integer type alone.
"""

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer, PyCapsule_New

import scipy
from scipy.linalg import cython_blas, cython_lapack

# {x} is the routine's precision, {i} the library's integer. The keys' first letter is a precision.
_GEMM = (
    "void (char *, char *, {i} *, {i} *, {i} *, {x} *, {x} *, {i} *, {x} *, {i} *, {x} *, {x} *, {i} *)"
)
_SYRK = "void (char *, char *, {i} *, {i} *, {x} *, {x} *, {i} *, {x} *, {x} *, {i} *)"
_TRSM = "void (char *, char *, char *, char *, {i} *, {i} *, {x} *, {x} *, {i} *, {x} *, {i} *)"
_POTRF = "void (char *, {i} *, {x} *, {i} *, {i} *)"
_ASUM = "{x} ({i} *, {x} *, {i} *)"

_ROUTINES = {
    "dgemm": (cython_blas, _GEMM),
    "dsyrk": (cython_blas, _SYRK),
    "dtrsm": (cython_blas, _TRSM),
    "dpotrf": (cython_lapack, _POTRF),
    "sgemm": (cython_blas, _GEMM),
    "ssyrk": (cython_blas, _SYRK),
    "strsm": (cython_blas, _TRSM),
    "spotrf": (cython_lapack, _POTRF),
    "dasum": (cython_blas, _ASUM),
}

# The integer type's spelling, and its width where the spelling tells. A type of SciPy's own
# (`blas_int`) is as wide as that build of SciPy chose.
_INTEGERS = {"int": 32, "int64_t": 64, "blas_int": None}

# PyCapsule_New keeps a pointer to the name, so these must outlive every capsule.
_CAPSULE_NAMES = {routine: f"qexp.blas.{routine}".encode() for routine in _ROUTINES}


def match_signature(routine, signature):
    """Find the width of the integers in a capsule's signature.

    Parameters
    ----------
    routine : str
        A routine of the table, e.g. ``"dgemm"``.
    signature : str
        The name of SciPy's capsule for it.

    Returns
    -------
    int or None
        32, 64, or None where the signature leaves it open.

    Raises
    ------
    ImportError
        If the signature is none of the known ones.
    """
    module, template = _ROUTINES[routine]
    name = module.__name__.rpartition(".")[2]
    typedef = f"__pyx_t_5scipy_6linalg_{len(name)}{name}_"
    for integer, bits in _INTEGERS.items():
        spelled = typedef + integer if bits is None else integer
        if signature == template.format(x=typedef + routine[0], i=spelled):
            return bits
    raise ImportError(
        f"SciPy {scipy.__version__} exports {routine} with the signature '{signature}', which "
        "this version of qexp does not know; install a newer qexp, or build it with "
        "-DQEXP_BLAS=system"
    )


def entry_points():
    """Fetch SciPy's entry points.

    Returns
    -------
    capsules : dict of str to PyCapsule
        One capsule named ``qexp.blas.<routine>`` for each routine that the kernels use.
    integer_bits : int or None
        Width of the library's integers; None where SciPy's signatures leave it open.

    Raises
    ------
    ImportError
        If SciPy lacks a routine, exports it with an unknown signature, or mixes widths.
    """
    cdef const char* signature
    cdef const char* name
    capsules = {}
    widths = {}
    for routine, (module, _) in _ROUTINES.items():
        exported = module.__pyx_capi__.get(routine)
        if exported is None:
            raise ImportError(f"SciPy {scipy.__version__} exports no {routine}; qexp needs it")
        signature = PyCapsule_GetName(exported)
        widths[routine] = match_signature(routine, signature.decode())
        name = _CAPSULE_NAMES[routine]
        capsules[routine] = PyCapsule_New(PyCapsule_GetPointer(exported, signature), name, NULL)
    if len(set(widths.values())) != 1:
        raise ImportError(f"SciPy {scipy.__version__} mixes widths of integers: {widths}")
    return capsules, widths["dasum"]
