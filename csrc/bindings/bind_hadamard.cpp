#include "bindings.hpp"

namespace qexp::bindings {

void register_hadamard(py::module_&) {}

}  // namespace qexp::bindings
