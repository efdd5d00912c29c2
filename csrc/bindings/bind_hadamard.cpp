#include <bit>

#include "bindings.hpp"
#include "fwht.hpp"
#include "srht.hpp"

namespace qexp::bindings {
namespace {

template <class T>
void bind_fwht(py::module_& module) {
  module.def(
      "fwht",
      [](Array<T> rows) {
        const auto view = output_rows(rows, "rows");
        const std::size_t count = extent(rows, 0), length = extent(rows, 1);
        require(std::has_single_bit(length), "rows have " + std::to_string(length) +
                                                 " numbers; the transform needs a power of two: "
                                                 "pad them with zeros");
        const py::gil_scoped_release release;
        fwht(view.data, count, length, view.stride);
      },
      py::arg("rows").noconvert());
}

// The checked map for rows of p numbers.
Srht srht_map(std::size_t p, const Array<std::uint64_t>& signs, const Array<std::int64_t>& indices,
              double scale) {
  require(p >= 1, "rows have no numbers; they need at least 1");
  const Srht map{p, input(signs, 1, "signs"), input(indices, 1, "indices"), scale};
  require(map.signs.size() * 64 >= p, "signs has " + std::to_string(map.signs.size()) +
                                          " words of 64 bits; rows of " + std::to_string(p) +
                                          " numbers need " + std::to_string((p + 63) / 64));
  const auto n = static_cast<std::int64_t>(map.padded());
  std::int64_t least = 0;
  for (const std::int64_t index : map.kept) {
    require(index >= least && index < n,
            "indices holds " + std::to_string(index) + " where it needs a number from " +
                std::to_string(least) + " to " + std::to_string(n - 1) +
                "; indices ascend without repeats below the padded length " + std::to_string(n));
    least = index + 1;
  }
  return map;
}

template <class T>
T* srht_output(Array<T>& out, std::size_t m, std::size_t columns) {
  require_shape(out, m, columns, "out");
  return output(out, 2, "out").data();
}

template <class T>
void bind_srht(py::module_& module) {
  module.def(
      "srht_forward",
      [](const Array<T>& rows, const Array<std::uint64_t>& signs,
         const Array<std::int64_t>& indices, double scale, Array<T> out) {
        const auto view = input_rows(rows, "rows");
        const std::size_t count = extent(rows, 0);
        const Srht map = srht_map(extent(rows, 1), signs, indices, scale);
        T* const target = srht_output(out, count, map.k());
        const py::gil_scoped_release release;
        srht_forward(map, view.data, count, view.stride, target);
      },
      py::arg("rows").noconvert(), py::arg("signs").noconvert(), py::arg("indices").noconvert(),
      py::arg("scale"), py::arg("out").noconvert());
  module.def(
      "srht_adjoint",
      [](const Array<T>& u, const Array<std::uint64_t>& signs, const Array<std::int64_t>& indices,
         double scale, Array<T> out) {
        const std::span<const T> source = input(u, 2, "u");
        require(out.ndim() == 2,
                "out has " + std::to_string(out.ndim()) + " dimensions; it needs 2");
        const Srht map = srht_map(extent(out, 1), signs, indices, scale);
        require(extent(u, 1) == map.k(), "u has " + std::to_string(u.shape(1)) +
                                             " columns; it needs one for each of the " +
                                             std::to_string(map.k()) + " indices");
        T* const target = srht_output(out, extent(u, 0), map.p);
        const py::gil_scoped_release release;
        srht_adjoint(map, source.data(), extent(u, 0), target);
      },
      py::arg("u").noconvert(), py::arg("signs").noconvert(), py::arg("indices").noconvert(),
      py::arg("scale"), py::arg("out").noconvert());
}

}  // namespace

void register_hadamard(py::module_& module) {
  bind_fwht<float>(module);
  bind_fwht<double>(module);
  bind_srht<float>(module);
  bind_srht<double>(module);
}

}  // namespace qexp::bindings
