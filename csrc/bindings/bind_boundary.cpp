#include "bindings.hpp"

namespace qexp::bindings {

void register_boundary(py::module_&) {}

}  // namespace qexp::bindings
