#include "bindings.hpp"

namespace qexp::bindings {

void register_row_gemm(py::module_&) {}

}  // namespace qexp::bindings
