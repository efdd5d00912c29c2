#include <algorithm>
#include <bit>

#include "bindings.hpp"
#include "kron_sketch.hpp"

namespace qexp::bindings {
namespace {

template <class T>
KroneckerFactor<T> checked_factor(const Array<T>& rows, const Array<std::uint64_t>& signs,
                                  const Array<std::int64_t>& kept, const std::string& name) {
  KroneckerFactor<T> factor{input(rows, 3, name.c_str()).data(), extent(rows, 2),
                            input(signs, 1, (name + "_signs").c_str()),
                            input(kept, 1, (name + "_indices").c_str())};
  require(factor.length > 0, name + " has rows of no numbers");
  require(factor.signs.size() * 64 >= factor.length,
          name + "_signs has fewer bits than " + name + " has numbers in a row");
  const auto limit = static_cast<std::int64_t>(std::bit_ceil(factor.length));
  require(std::ranges::all_of(factor.kept, [=](std::int64_t i) { return 0 <= i && i < limit; }),
          name + "_indices holds an index outside 0.." + std::to_string(limit - 1));
  return factor;
}

template <class T>
void bind_kron_sketch(py::module_& module) {
  module.def(
      "kron_sketch",
      [](const Array<T>& left, const Array<std::uint64_t>& left_signs,
         const Array<std::int64_t>& left_indices, const Array<T>& right,
         const Array<std::uint64_t>& right_signs, const Array<std::int64_t>& right_indices,
         double scale, Array<T> out) {
        const auto l = checked_factor(left, left_signs, left_indices, "left");
        const auto r = checked_factor(right, right_signs, right_indices, "right");
        require(extent(left, 0) == extent(right, 0) && extent(left, 1) == extent(right, 1),
                "left and right differ in their numbers of records or positions");
        require(l.kept.size() == r.kept.size(), "left_indices and right_indices differ in length");
        require_shape(out, extent(left, 0), l.kept.size(), "out");
        // Rows may stand apart, as those of one layer do among several layers' sketches.
        const auto to = output_rows(out, "out");
        const std::size_t m = extent(left, 0), positions = extent(left, 1);
        const py::gil_scoped_release release;
        kron_sketch(l, r, m, positions, scale, to.data, to.stride);
      },
      py::arg("left").noconvert(), py::arg("left_signs").noconvert(),
      py::arg("left_indices").noconvert(), py::arg("right").noconvert(),
      py::arg("right_signs").noconvert(), py::arg("right_indices").noconvert(), py::arg("scale"),
      py::arg("out").noconvert());
}

}  // namespace

void register_kron_sketch(py::module_& module) {
  bind_kron_sketch<float>(module);
  bind_kron_sketch<double>(module);
}

}  // namespace qexp::bindings
