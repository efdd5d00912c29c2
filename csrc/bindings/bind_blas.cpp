#include "bindings.hpp"

namespace qexp::bindings {

void register_blas(py::module_&) {}

}  // namespace qexp::bindings
