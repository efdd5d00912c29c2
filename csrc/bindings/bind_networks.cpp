#include <pybind11/stl.h>

#include <variant>
#include <vector>

#include "bindings.hpp"
#include "networks.hpp"

namespace qexp::bindings {
namespace {

struct AnyNetwork {
  std::variant<Network<float>, Network<double>> network;
};

template <class T>
RowView<T> as_rows(std::span<T> values, std::size_t count, std::size_t columns) {
  return {values.data(), count, static_cast<std::ptrdiff_t>(columns)};
}

template <class T>
RowView<const T> records(const Array<T>& x, const Network<T>& network) {
  require(x.ndim() == 2, "x needs 2 dimensions");
  require_shape(x, extent(x, 0), network.inputs(), "x");
  return as_rows(input(x, 2, "x"), extent(x, 0), network.inputs());
}

template <class T>
RowView<T> result(Array<T>& a, std::size_t rows, std::size_t columns, const char* name) {
  require_shape(a, rows, columns, name);
  return as_rows(output(a, 2, name), rows, columns);
}

std::span<const std::int64_t> labels_of(const Array<std::int64_t>& labels, std::size_t count) {
  const auto values = input(labels, 1, "labels");
  require(values.size() == count, "labels has " + std::to_string(values.size()) + " entries for " +
                                      std::to_string(count) + " records");
  return values;
}

template <class T>
std::vector<LayerFactors<T>> factors_of(const Network<T>& network, std::size_t count,
                                        std::size_t rows_per_record, std::vector<Array<T>>& inputs,
                                        std::vector<Array<T>>& deltas) {
  require(inputs.size() == network.layers() && deltas.size() == network.layers(),
          "inputs and deltas need one array a layer, " + std::to_string(network.layers()));
  std::vector<LayerFactors<T>> factors;
  for (std::size_t l = 0; l < network.layers(); ++l) {
    factors.push_back({result(inputs[l], count, network.inputs(l) + 1, "inputs"),
                       result(deltas[l], count * rows_per_record, network.outputs(l), "deltas")});
  }
  return factors;
}

template <class T>
Array<T> typed(const py::array& a, const char* name) {
  if (!py::isinstance<Array<T>>(a)) {
    throw py::type_error(std::string(name) + " is " + py::str(a.dtype()).cast<std::string>() +
                         "; the network's arrays are " +
                         py::str(py::dtype::of<T>()).cast<std::string>());
  }
  return py::cast<Array<T>>(a);
}

template <class T>
std::vector<Array<T>> typed(const std::vector<py::array>& arrays, const char* name) {
  std::vector<Array<T>> result;
  for (const py::array& a : arrays) result.push_back(typed<T>(a, name));
  return result;
}

template <class T>
AnyNetwork build(const std::vector<std::size_t>& sizes, Activation activation,
                 const Array<T>& weights) {
  const auto values = input(weights, 1, "weights");
  require(values.size() == Network<T>::count_parameters(sizes),
          "weights has " + std::to_string(values.size()) + " entries; these layers need " +
              std::to_string(Network<T>::count_parameters(sizes)));
  py::gil_scoped_release release;
  return {Network<T>(sizes, activation, values)};
}

AnyNetwork make_network(const std::vector<std::size_t>& sizes, const std::string& activation,
                        const py::array& weights) {
  require(sizes.size() >= 2, "layer_sizes needs at least the numbers of inputs and outputs");
  for (std::size_t size : sizes) require(size > 0, "layer_sizes holds a zero");
  require(activation == "tanh" || activation == "relu",
          "activation is '" + activation + "'; it must be 'tanh' or 'relu'");
  const Activation kind = activation == "relu" ? Activation::relu : Activation::tanh;
  if (py::isinstance<Array<float>>(weights)) {
    return build(sizes, kind, typed<float>(weights, "weights"));
  }
  if (py::isinstance<Array<double>>(weights)) {
    return build(sizes, kind, typed<double>(weights, "weights"));
  }
  throw py::type_error("weights is " + py::str(weights.dtype()).cast<std::string>() +
                       "; it must be float32 or float64");
}

void log_probabilities(const AnyNetwork& self, const py::array& x_any, const py::array& out_any) {
  std::visit(
      [&]<class T>(const Network<T>& network) {
        const auto x = typed<T>(x_any, "x");
        auto out = typed<T>(out_any, "out");
        const auto rows = records(x, network);
        const auto target = result(out, rows.count, network.classes(), "out");
        py::gil_scoped_release release;
        network.log_probabilities(rows, target);
      },
      self.network);
}

void gradient_rows(const AnyNetwork& self, const py::array& x_any,
                   const Array<std::int64_t>& labels_any, const py::array& out_any) {
  std::visit(
      [&]<class T>(const Network<T>& network) {
        const auto x = typed<T>(x_any, "x");
        auto out = typed<T>(out_any, "out");
        const auto rows = records(x, network);
        const auto labels = labels_of(labels_any, rows.count);
        const auto target = result(out, rows.count, network.parameters(), "out");
        py::gil_scoped_release release;
        network.gradient_rows(rows, labels, target);
      },
      self.network);
}

void curvature_rows(const AnyNetwork& self, const py::array& x_any, const py::array& out_any) {
  std::visit(
      [&]<class T>(const Network<T>& network) {
        const auto x = typed<T>(x_any, "x");
        auto out = typed<T>(out_any, "out");
        const auto rows = records(x, network);
        const auto target =
            result(out, rows.count * network.classes(), network.parameters(), "out");
        py::gil_scoped_release release;
        network.curvature_rows(rows, target);
      },
      self.network);
}

void gradient_factors(const AnyNetwork& self, const py::array& x_any,
                      const Array<std::int64_t>& labels_any,
                      const std::vector<py::array>& inputs_any,
                      const std::vector<py::array>& deltas_any) {
  std::visit(
      [&]<class T>(const Network<T>& network) {
        const auto x = typed<T>(x_any, "x");
        auto inputs = typed<T>(inputs_any, "inputs");
        auto deltas = typed<T>(deltas_any, "deltas");
        const auto rows = records(x, network);
        const auto labels = labels_of(labels_any, rows.count);
        const auto factors = factors_of(network, rows.count, 1, inputs, deltas);
        py::gil_scoped_release release;
        network.gradient_factors(rows, labels, factors);
      },
      self.network);
}

void curvature_factors(const AnyNetwork& self, const py::array& x_any,
                       const std::vector<py::array>& inputs_any,
                       const std::vector<py::array>& deltas_any) {
  std::visit(
      [&]<class T>(const Network<T>& network) {
        const auto x = typed<T>(x_any, "x");
        auto inputs = typed<T>(inputs_any, "inputs");
        auto deltas = typed<T>(deltas_any, "deltas");
        const auto rows = records(x, network);
        const auto factors = factors_of(network, rows.count, network.classes(), inputs, deltas);
        py::gil_scoped_release release;
        network.curvature_factors(rows, factors);
      },
      self.network);
}

}  // namespace

void register_networks(py::module_& module) {
  py::class_<AnyNetwork>(module, "Network",
                         "A multilayer perceptron whose results for a record depend on that record "
                         "and the weights alone.")
      .def(py::init(&make_network), py::arg("layer_sizes"), py::arg("activation"),
           py::arg("weights").noconvert())
      .def("log_probabilities", &log_probabilities, py::arg("x").noconvert(),
           py::arg("out").noconvert())
      .def("gradient_rows", &gradient_rows, py::arg("x").noconvert(), py::arg("labels").noconvert(),
           py::arg("out").noconvert())
      .def("curvature_rows", &curvature_rows, py::arg("x").noconvert(), py::arg("out").noconvert())
      .def("gradient_factors", &gradient_factors, py::arg("x").noconvert(),
           py::arg("labels").noconvert(), py::arg("inputs").noconvert(),
           py::arg("deltas").noconvert())
      .def("curvature_factors", &curvature_factors, py::arg("x").noconvert(),
           py::arg("inputs").noconvert(), py::arg("deltas").noconvert());
}

}  // namespace qexp::bindings
