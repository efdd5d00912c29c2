#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bindings.hpp"
#include "exact_normal.hpp"
#include "lattice_sum.hpp"

namespace qexp::bindings {
namespace {

// With more, two standard deviations would no longer fit an integer.
constexpr int most_lattice_bits = 62;

py::tuple draw(const Array<std::uint64_t>& words, int lattice_bits, Array<std::int64_t> out) {
  require(0 <= lattice_bits && lattice_bits <= most_lattice_bits,
          "lattice_bits is " + std::to_string(lattice_bits) + "; it needs 0 to " +
              std::to_string(most_lattice_bits));
  const auto supply = input(words, 1, "words");
  const auto normals = output(out, 1, "out");
  NormalsDrawn drawn;
  {
    py::gil_scoped_release unlocked;
    drawn = draw_lattice_normals(supply, lattice_bits, normals);
  }
  return py::make_tuple(drawn.normals, drawn.words);
}

void add_records(const Array<double>& rows, Array<std::int64_t> total, double units_per_norm,
                 double clipping_norm, std::int64_t bound) {
  const auto records = input(rows, 2, "rows");
  const auto sum = output(total, 1, "total");
  require(extent(rows, 1) == sum.size(), "rows have " + std::to_string(extent(rows, 1)) +
                                             " entries, total has " + std::to_string(sum.size()) +
                                             "; they need the same number");
  require(0 <= bound && bound <= (std::int64_t{1} << 52),
          "bound is " + std::to_string(bound) + "; it needs 0 to 2^52");
  py::gil_scoped_release unlocked;
  // Signed and unsigned integers of one width may view each other's storage.
  lattice_sum(records.data(), extent(rows, 0), sum.size(), sum.size(),
              {units_per_norm, clipping_norm, bound}, reinterpret_cast<std::uint64_t*>(sum.data()));
}

void add_outer_products(const std::vector<std::pair<Array<double>, Array<double>>>& factors,
                        Array<std::int64_t> total, double units_per_norm, double clipping_norm,
                        std::int64_t bound) {
  const auto sum = output(total, 1, "total");
  // The bounds that the kernel's proof needs.
  require((std::int64_t{1} << 21) <= bound && bound <= (std::int64_t{1} << 51),
          "bound is " + std::to_string(bound) + "; it needs 2^21 to 2^51");
  require(units_per_norm * clipping_norm <= static_cast<double>(bound + 1),
          "units_per_norm times clipping_norm exceeds bound + 1");
  std::vector<OuterProducts> layers;
  std::size_t m = 0, entries = 0, longest = 0;
  for (const auto& [left, right] : factors) {
    const auto l = input(left, 2, "left factors");
    const auto r = input(right, 2, "right factors");
    if (layers.empty()) m = extent(left, 0);
    require(extent(left, 0) == m && extent(right, 0) == m,
            "the factors have different numbers of records");
    layers.push_back({l.data(), r.data(), extent(left, 1), extent(right, 1)});
    entries += extent(left, 1) * extent(right, 1);
    longest += extent(left, 1) + extent(right, 1);
  }
  require(entries == sum.size(), "the factors make " + std::to_string(entries) +
                                     " entries, total has " + std::to_string(sum.size()) +
                                     "; they need the same number");
  require(longest <= (std::size_t{1} << 29), "the factors have more than 2^29 entries a record");
  py::gil_scoped_release unlocked;
  lattice_sum_outer(layers, m, {units_per_norm, clipping_norm, bound},
                    reinterpret_cast<std::uint64_t*>(sum.data()));
}

}  // namespace

void register_boundary(py::module_& module) {
  module.def("draw_lattice_normals", &draw, py::arg("words").noconvert(), py::arg("lattice_bits"),
             py::arg("out").noconvert());
  module.def("lattice_sum", &add_records, py::arg("rows").noconvert(), py::arg("total").noconvert(),
             py::kw_only(), py::arg("units_per_norm"), py::arg("clipping_norm"), py::arg("bound"));
  module.def("lattice_sum_outer", &add_outer_products, py::arg("factors").noconvert(),
             py::arg("total").noconvert(), py::kw_only(), py::arg("units_per_norm"),
             py::arg("clipping_norm"), py::arg("bound"));
}

}  // namespace qexp::bindings
