#include "bindings.hpp"

namespace qexp::bindings {

void register_networks(py::module_&) {}

}  // namespace qexp::bindings
