#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
  using namespace qexp::bindings;
  module.doc() = "Compiled kernels of qexp. Arguments are checked, never converted or copied.";
  register_blas(module);
  register_boundary(module);
  register_config(module);
  register_factor(module);
  register_hadamard(module);
  register_kron_sketch(module);
  register_networks(module);
  register_row_gemm(module);
}
