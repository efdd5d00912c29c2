#include "bindings.hpp"
#include "blas.hpp"

namespace qexp::bindings {
namespace {

// The entry points arrive as capsules named after themselves, so that neither a number nor another
// function's pointer can be bound by mistake.
template <class Pointer>
void take(const py::dict& entry_points, const char* name, Pointer& into) {
  require(entry_points.contains(name), std::string("bind_blas got no entry point ") + name);
  const std::string capsule_name = std::string("qexp.blas.") + name;
  void* pointer = PyCapsule_GetPointer(py::object(entry_points[name]).ptr(), capsule_name.c_str());
  if (pointer == nullptr) throw py::error_already_set();
  into = reinterpret_cast<Pointer>(pointer);
}

template <class Int>
Blas make_blas(const std::string& provider, const py::dict& entry_points) {
  BlasTable<Int> table;
  take(entry_points, "dgemm", table.f64.gemm);
  take(entry_points, "dsyrk", table.f64.syrk);
  take(entry_points, "dtrsm", table.f64.trsm);
  take(entry_points, "dpotrf", table.f64.potrf);
  take(entry_points, "sgemm", table.f32.gemm);
  take(entry_points, "ssyrk", table.f32.syrk);
  take(entry_points, "strsm", table.f32.trsm);
  take(entry_points, "spotrf", table.f32.potrf);
  take(entry_points, "dasum", table.dasum);
  return Blas(provider, table);
}

}  // namespace

void register_blas(py::module_& module) {
  module.def(
      "bind_blas",
      [](const std::string& provider, const py::dict& entry_points, py::object integer_bits) {
        int bits = 0;
        if (integer_bits.is_none()) {
          void (*dasum)();
          take(entry_points, "dasum", dasum);
          bits = detect_integer_bits(dasum);
        } else {
          bits = integer_bits.cast<int>();
        }
        require(bits == 32 || bits == 64,
                "bind_blas got integer_bits=" + std::to_string(bits) + "; it needs 32, 64 or None");
        bind_blas(bits == 32 ? make_blas<std::int32_t>(provider, entry_points)
                             : make_blas<std::int64_t>(provider, entry_points));
      },
      py::arg("provider"), py::arg("entry_points"), py::kw_only(), py::arg("integer_bits"));
  module.def("blas_config", []() -> py::object {
    if (!blas_is_bound()) return py::none();
    const Blas& blas = bound_blas();
    py::dict config;
    config["provider"] = blas.provider();
    config["integer_bits"] = blas.integer_bits();
    return config;
  });
}

}  // namespace qexp::bindings
