# Where BLAS and LAPACK come from.
#
# QEXP_BLAS=scipy (default) needs nothing at build time: csrc/blas.hpp's table is filled at run time
# from the pointers that SciPy exports. QEXP_BLAS=system links the kernels to a library instead:
#   BLA_VENDOR               which one, in CMake's FindBLAS names (OpenBLAS, Intel10_64lp, FLAME, ...)
#   BLA_SIZEOF_INTEGER       4 (LP64, default) or 8 (ILP64)
#   QEXP_BLAS_SUFFIX         what the library appends to a routine's name: "_" (default), "64_", ...
#   QEXP_BLAS_LIBRARIES      libraries to link to, where FindBLAS cannot find them by itself
target_sources(qexp_kernels PRIVATE csrc/blas_reference.cpp csrc/product.cpp)
if(TARGET qexp_isa_avx512)
  target_sources(qexp_isa_avx512 PRIVATE csrc/product_avx512.cpp)
endif()

if(QEXP_BLAS STREQUAL "system")
  set(QEXP_BLAS_SUFFIX "_" CACHE STRING "What the BLAS library appends to a routine's name")
  set(QEXP_BLAS_LIBRARIES "" CACHE STRING "BLAS and LAPACK libraries; empty: let CMake find them")
  if(NOT BLA_SIZEOF_INTEGER)
    set(BLA_SIZEOF_INTEGER 4)
  endif()
  if(NOT BLA_SIZEOF_INTEGER MATCHES "^(4|8)$")
    message(FATAL_ERROR "BLA_SIZEOF_INTEGER is '${BLA_SIZEOF_INTEGER}'; it can be 4 or 8")
  endif()
  if(NOT QEXP_BLAS_LIBRARIES)
    find_package(BLAS)
    find_package(LAPACK)
    if(NOT BLAS_FOUND OR NOT LAPACK_FOUND)
      message(FATAL_ERROR
        "QEXP_BLAS=system, but CMake found no BLAS and LAPACK (BLA_VENDOR='${BLA_VENDOR}', "
        "BLA_SIZEOF_INTEGER=${BLA_SIZEOF_INTEGER}). Install one (e.g. libopenblas-dev), name it "
        "with -DBLA_VENDOR=... or -DQEXP_BLAS_LIBRARIES=/path/to/lib..., or build with "
        "-DQEXP_BLAS=scipy, which needs none.")
    endif()
    set(QEXP_BLAS_LIBRARIES ${LAPACK_LIBRARIES} ${BLAS_LIBRARIES})
  endif()

  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_LIBRARIES ${QEXP_BLAS_LIBRARIES})
  check_cxx_source_compiles("
    extern \"C\" void dgemm${QEXP_BLAS_SUFFIX}();
    extern \"C\" void dpotrf${QEXP_BLAS_SUFFIX}();
    int main() { dgemm${QEXP_BLAS_SUFFIX}(); dpotrf${QEXP_BLAS_SUFFIX}(); }"
    QEXP_BLAS_LINKS_WITH_SUFFIX_${QEXP_BLAS_SUFFIX})
  unset(CMAKE_REQUIRED_LIBRARIES)
  if(NOT QEXP_BLAS_LINKS_WITH_SUFFIX_${QEXP_BLAS_SUFFIX})
    message(FATAL_ERROR
      "QEXP_BLAS=system, but ${QEXP_BLAS_LIBRARIES} has no dgemm${QEXP_BLAS_SUFFIX} and "
      "dpotrf${QEXP_BLAS_SUFFIX}. Set -DQEXP_BLAS_SUFFIX to what the library appends to its names.")
  endif()

  target_sources(qexp_kernels PRIVATE csrc/blas_system.cpp)
  target_compile_definitions(qexp_kernels PUBLIC QEXP_BLAS_SYSTEM=1)
  math(EXPR bits "8 * ${BLA_SIZEOF_INTEGER}")
  set_source_files_properties(csrc/blas_system.cpp PROPERTIES COMPILE_DEFINITIONS
    "QEXP_BLAS_INTEGER=std::int${bits}_t;QEXP_BLAS_SUFFIX=${QEXP_BLAS_SUFFIX}")
  target_link_libraries(qexp_kernels PUBLIC ${QEXP_BLAS_LIBRARIES})
elseif(NOT QEXP_BLAS STREQUAL "scipy")
  message(FATAL_ERROR "QEXP_BLAS is '${QEXP_BLAS}'; it can be scipy or system")
endif()
