#include "bindings.hpp"

namespace qexp::bindings {

void register_factor(py::module_&) {}

}  // namespace qexp::bindings
