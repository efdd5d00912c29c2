#include <bit>

#include "bindings.hpp"
#include "fwht.hpp"
#include "srht.hpp"

namespace qexp::bindings {
namespace {

template <class T>
struct Rows {
  std::size_t count;
  std::size_t length;
  std::ptrdiff_t stride;  // in numbers
};

// Rows may stand apart from each other; the numbers of one row may not.
template <class T>
Rows<T> rows_of(const Array<T>& a, const char* name) {
  const std::string label(name);
  require(a.ndim() == 2,
          label + " has " + std::to_string(a.ndim()) + " dimensions; it needs 2 (rows, numbers)");
  constexpr auto item = static_cast<py::ssize_t>(sizeof(T));
  require(a.shape(1) <= 1 || a.strides(1) == item,
          label + " has gaps between the numbers of a row; make a contiguous copy first");
  require(a.shape(0) <= 1 || a.strides(0) % item == 0,
          label + " has rows that are not a whole number of items apart; copy it first");
  require(reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0,
          label + " is not aligned; copy it first");
  return {extent(a, 0), extent(a, 1), a.shape(0) <= 1 ? 0 : a.strides(0) / item};
}

template <class T>
void bind_fwht(py::module_& module) {
  module.def(
      "fwht",
      [](Array<T> rows) {
        const Rows<T> view = rows_of(rows, "rows");
        require(std::has_single_bit(view.length), "rows have " + std::to_string(view.length) +
                                                      " numbers; the transform needs a power of "
                                                      "two: pad them with zeros");
        require(view.count <= 1 || static_cast<std::size_t>(std::abs(view.stride)) >= view.length,
                "rows overlap; copy them first");
        require(rows.writeable(), "rows is read-only");
        T* const data = rows.mutable_data();
        const py::gil_scoped_release release;
        fwht(data, view.count, view.length, view.stride);
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
std::span<T> srht_output(Array<T>& out, std::size_t m, std::size_t columns) {
  const std::span<T> view = output(out, 2, "out");
  require(extent(out, 0) == m && extent(out, 1) == columns,
          "out has shape (" + std::to_string(out.shape(0)) + ", " + std::to_string(out.shape(1)) +
              "); it needs (" + std::to_string(m) + ", " + std::to_string(columns) + ")");
  return view;
}

template <class T>
void bind_srht(py::module_& module) {
  module.def(
      "srht_forward",
      [](const Array<T>& rows, const Array<std::uint64_t>& signs,
         const Array<std::int64_t>& indices, double scale, Array<T> out) {
        const Rows<T> view = rows_of(rows, "rows");
        const Srht map = srht_map(view.length, signs, indices, scale);
        T* const target = srht_output(out, view.count, map.k()).data();
        const T* const source = rows.data();
        const py::gil_scoped_release release;
        srht_forward(map, source, view.count, view.stride, target);
      },
      py::arg("rows").noconvert(), py::arg("signs").noconvert(), py::arg("indices").noconvert(),
      py::arg("scale"), py::arg("out").noconvert());
  module.def(
      "srht_adjoint",
      [](const Array<T>& u, const Array<std::uint64_t>& signs, const Array<std::int64_t>& indices,
         double scale, Array<T> out) {
        const std::span<const T> source = input(u, 2, "u");
        require(out.ndim() == 2, "out has " + std::to_string(out.ndim()) +
                                     " dimensions; it needs 2");
        const Srht map = srht_map(extent(out, 1), signs, indices, scale);
        require(extent(u, 1) == map.k(), "u has " + std::to_string(u.shape(1)) +
                                             " columns; it needs one for each of the " +
                                             std::to_string(map.k()) + " indices");
        T* const target = srht_output(out, extent(u, 0), map.p).data();
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
