#include "bindings.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

// Found by name by thread-pool controllers that look through the loaded libraries.
extern "C" __attribute__((visibility("default"))) int qexp_get_num_threads() {
  return qexp::num_threads();
}
extern "C" __attribute__((visibility("default"))) void qexp_set_num_threads(int count) {
  qexp::set_num_threads(count);
}

namespace qexp::bindings {

void register_config(py::module_& module) {
  module.attr("__version__") = QEXP_VERSION;
  module.attr("compiler") =
#ifdef __clang__
      "clang " __clang_version__;
#else
      "gcc " __VERSION__;
#endif
  module.def("isa", [] { return std::string(isa_name(active_isa())); });
  module.def("get_num_threads", &num_threads);
  module.def("set_num_threads", [](int count) {
    require(count >= 1, "set_num_threads got " + std::to_string(count) + "; it needs at least 1");
    set_num_threads(count);
  });
}

}  // namespace qexp::bindings
