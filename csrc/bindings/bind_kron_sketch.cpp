#include <algorithm>

#include "bindings.hpp"
#include "kron_sketch.hpp"

namespace qexp::bindings {
namespace {

void check_indices(std::span<const std::int64_t> indices, std::size_t bound, const char* name) {
  const auto limit = static_cast<std::int64_t>(bound);
  require(std::ranges::all_of(indices, [&](std::int64_t i) { return 0 <= i && i < limit; }),
          std::string(name) + " holds an index outside 0.." + std::to_string(limit - 1));
}

template <class T>
void bind_outer_entries(py::module_& module) {
  module.def(
      "outer_entries",
      [](const Array<T>& left, const Array<T>& right, const Array<std::int64_t>& left_indices,
         const Array<std::int64_t>& right_indices, double scale, Array<T> out) {
        const auto l = input(left, 3, "left"), r = input(right, 3, "right");
        const KeptEntries kept{input(left_indices, 1, "left_indices"),
                               input(right_indices, 1, "right_indices"), scale};
        require(extent(left, 0) == extent(right, 0) && extent(left, 1) == extent(right, 1),
                "left and right differ in their numbers of records or positions");
        require(kept.left.size() == kept.right.size(),
                "left_indices and right_indices differ in length");
        check_indices(kept.left, extent(left, 2), "left_indices");
        check_indices(kept.right, extent(right, 2), "right_indices");
        const auto to = output(out, 2, "out");
        require(extent(out, 0) == extent(left, 0) && extent(out, 1) == kept.left.size(),
                "out needs one row a record and one column an index");
        const py::gil_scoped_release release;
        outer_entries(l.data(), extent(left, 2), r.data(), extent(right, 2), extent(left, 0),
                      extent(left, 1), kept, to.data(), kept.left.size());
      },
      py::arg("left").noconvert(), py::arg("right").noconvert(),
      py::arg("left_indices").noconvert(), py::arg("right_indices").noconvert(), py::arg("scale"),
      py::arg("out").noconvert());
}

}  // namespace

void register_kron_sketch(py::module_& module) {
  bind_outer_entries<float>(module);
  bind_outer_entries<double>(module);
}

}  // namespace qexp::bindings
