#include "networks.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "parallel.hpp"
#include "tanh.hpp"

namespace qexp {
namespace {

// Rows that pass through the layers together: some tiles of row_gemm, few enough that their
// factors stay in the second-level cache.
constexpr std::size_t rows_per_block = 48;

// Gradient elements that repay the start of one more thread.
constexpr std::size_t work_per_thread = std::size_t{1} << 18;

// Comparisons are written so that a NaN comes through.
template <class T>
void activate(T* sums, std::size_t count, Activation activation) noexcept {
  if (activation == Activation::relu) {
    for (std::size_t j = 0; j < count; ++j) sums[j] = sums[j] < 0 ? T{0} : sums[j];
  } else {
    if constexpr (std::is_same_v<T, float>) {
      QEXP_DISPATCH(tanh_f32)(sums, count);
    } else {
      QEXP_DISPATCH(tanh_f64)(sums, count);
    }
  }
}

// Both derivatives are functions of the activation's own value.
template <class T>
void multiply_by_derivative(T* deltas, const T* values, std::size_t count,
                            Activation activation) noexcept {
  if (activation == Activation::relu) {
    for (std::size_t j = 0; j < count; ++j) deltas[j] = values[j] <= 0 ? T{0} : deltas[j];
  } else {
    for (std::size_t j = 0; j < count; ++j) deltas[j] *= T{1} - values[j] * values[j];
  }
}

// sums -> sums - log(sum of exp(sums))
template <class T>
void log_softmax(T* sums, std::size_t count) noexcept {
  const T largest = *std::max_element(sums, sums + count);
  T total{0};
  for (std::size_t j = 0; j < count; ++j) total += std::exp(sums[j] - largest);
  const T log_total = std::log(total);
  for (std::size_t j = 0; j < count; ++j) sums[j] = (sums[j] - largest) - log_total;
}

template <class T>
void softmax(T* sums, std::size_t count) noexcept {
  const T largest = *std::max_element(sums, sums + count);
  T total{0};
  for (std::size_t j = 0; j < count; ++j) total += sums[j] = std::exp(sums[j] - largest);
  for (std::size_t j = 0; j < count; ++j) sums[j] /= total;
}

// Returns the end of what it wrote.
template <class T>
T* write_outer_product(const T* delta, std::ptrdiff_t rows, const T* input, std::ptrdiff_t columns,
                       T* out) noexcept {
  for (std::ptrdiff_t o = 0; o < rows; ++o, out += columns) {
    for (std::ptrdiff_t j = 0; j < columns; ++j) out[j] = delta[o] * input[j];
  }
  return out;
}

}  // namespace

// What one thread needs for one block of records.
template <class T>
struct Network<T>::Workspace {
  Workspace(const Network& network, std::size_t records, std::size_t rows_per_record)
      : scratch(scratch_size(network, records, rows_per_record)),
        classes(static_cast<std::ptrdiff_t>(network.classes())),
        sums(records * network.classes()),
        memory(records * factor_size(network, rows_per_record)) {
    T* free = memory.data();
    for (const Layer& layer : network.layers_) {
      const std::size_t width = layer.inputs + 1;
      const std::size_t rows = records * rows_per_record;
      factors.push_back(
          {{free, records, static_cast<std::ptrdiff_t>(width)},
           {free + records * width, rows, static_cast<std::ptrdiff_t>(layer.outputs)}});
      free += records * width + rows * layer.outputs;
    }
  }

  static std::size_t scratch_size(const Network& network, std::size_t records,
                                  std::size_t rows_per_record) noexcept {
    std::size_t size = 0;
    for (const Layer& layer : network.layers_) {
      size = std::max({size, layer.forward.scratch_size(records),
                       layer.backward.scratch_size(records * rows_per_record)});
    }
    return size;
  }

  static std::size_t factor_size(const Network& network, std::size_t rows_per_record) noexcept {
    std::size_t size = 0;
    for (const Layer& layer : network.layers_) {
      size += layer.inputs + 1 + rows_per_record * layer.outputs;
    }
    return size;
  }

  RowView<T> sums_view(std::size_t records) const noexcept {
    return {sums.data(), records, classes};
  }

  AlignedArray<T> scratch;
  std::ptrdiff_t classes;
  AlignedArray<T> sums;
  AlignedArray<T> memory;
  std::vector<LayerFactors<T>> factors;
};

template <class T>
std::size_t Network<T>::count_parameters(std::span<const std::size_t> sizes) noexcept {
  std::size_t count = 0;
  for (std::size_t l = 0; l + 1 < sizes.size(); ++l) count += sizes[l + 1] * (sizes[l] + 1);
  return count;
}

template <class T>
Network<T>::Network(std::span<const std::size_t> layer_sizes, Activation activation,
                    std::span<const T> weights)
    : activation_(activation), parameters_(count_parameters(layer_sizes)) {
  const T* w = weights.data();
  for (std::size_t l = 0; l + 1 < layer_sizes.size(); ++l) {
    const std::size_t in = layer_sizes[l], out = layer_sizes[l + 1];
    const auto row_stride = static_cast<std::ptrdiff_t>(in + 1);
    std::vector<T> bias(out);
    for (std::size_t o = 0; o < out; ++o) bias[o] = w[o * (in + 1) + in];
    layers_.push_back({in, out, std::move(bias), PackedMatrix<T>(w, in, out, 1, row_stride),
                       PackedMatrix<T>(w, out, in, row_stride, 1)});
    w += out * (in + 1);
  }
}

template <class T>
void Network<T>::log_probabilities(RowView<const T> x, RowView<T> out) const {
  for_each_block(x.count, 1, [&](std::size_t first, std::size_t m, Workspace& workspace) {
    const RowView<T> sums = out.subrows(first, m);
    forward(x.subrows(first, m), workspace.factors, sums, nullptr, workspace.scratch);
    for (std::size_t i = 0; i < m; ++i) log_softmax(sums[i], classes());
  });
}

template <class T>
void Network<T>::gradient_rows(RowView<const T> x, std::span<const std::int64_t> labels,
                               RowView<T> rows) const {
  write_rows(x, labels.data(), 1, rows);
}

template <class T>
void Network<T>::curvature_rows(RowView<const T> x, RowView<T> rows) const {
  write_rows(x, nullptr, classes(), rows);
}

template <class T>
void Network<T>::gradient_factors(RowView<const T> x, std::span<const std::int64_t> labels,
                                  std::span<const LayerFactors<T>> factors) const {
  write_factors(x, labels.data(), 1, factors);
}

template <class T>
void Network<T>::curvature_factors(RowView<const T> x,
                                   std::span<const LayerFactors<T>> factors) const {
  write_factors(x, nullptr, classes(), factors);
}

template <class T>
void Network<T>::write_rows(RowView<const T> x, const std::int64_t* labels,
                            std::size_t rows_per_record, RowView<T> rows) const {
  for_each_block(
      x.count, rows_per_record, [&](std::size_t first, std::size_t m, Workspace& workspace) {
        compute_factors(x.subrows(first, m), labels == nullptr ? nullptr : labels + first,
                        rows_per_record, workspace);
        for (std::size_t r = 0; r < m * rows_per_record; ++r) {
          T* out = rows[first * rows_per_record + r];
          for (const LayerFactors<T>& layer : workspace.factors) {
            out = write_outer_product(layer.deltas[r], layer.deltas.stride,
                                      layer.inputs[r / rows_per_record], layer.inputs.stride, out);
          }
        }
      });
}

template <class T>
void Network<T>::write_factors(RowView<const T> x, const std::int64_t* labels,
                               std::size_t rows_per_record,
                               std::span<const LayerFactors<T>> factors) const {
  for_each_block(
      x.count, rows_per_record, [&](std::size_t first, std::size_t m, Workspace& workspace) {
        compute_factors(x.subrows(first, m), labels == nullptr ? nullptr : labels + first,
                        rows_per_record, workspace);
        for (std::size_t l = 0; l < layers_.size(); ++l) {
          const LayerFactors<T>& computed = workspace.factors[l];
          for (std::size_t i = 0; i < m; ++i) {
            std::copy_n(computed.inputs[i], layers_[l].inputs + 1, factors[l].inputs[first + i]);
          }
          for (std::size_t r = 0; r < m * rows_per_record; ++r) {
            std::copy_n(computed.deltas[r], layers_[l].outputs,
                        factors[l].deltas[first * rows_per_record + r]);
          }
        }
      });
}

// body(first, m, workspace) for consecutive blocks of records, on several threads.
template <class T>
template <class Body>
void Network<T>::for_each_block(std::size_t records, std::size_t rows_per_record,
                                const Body& body) const {
  const std::size_t block = divide_up(rows_per_block, rows_per_record);
  const std::size_t parts =
      std::clamp<std::size_t>(records * rows_per_record * parameters_ / work_per_thread, 1,
                              static_cast<std::size_t>(num_threads()));
  const std::size_t records_per_part = divide_up(records, parts);
  std::vector<Workspace> workspaces;
  workspaces.reserve(parts);
  for (std::size_t part = 0; part < parts; ++part) {
    workspaces.emplace_back(*this, std::min(block, records_per_part), rows_per_record);
  }
  parallel_for(parts, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t part = begin; part < end; ++part) {
      const std::size_t stop = std::min(records, (part + 1) * records_per_part);
      for (std::size_t first = part * records_per_part; first < stop; first += block) {
        body(first, std::min(block, stop - first), workspaces[part]);
      }
    }
  });
}

// Fills workspace.factors for the records of x. labels == nullptr: for all classes in turn, each
// scaled by the root of its probability.
template <class T>
void Network<T>::compute_factors(RowView<const T> x, const std::int64_t* labels,
                                 std::size_t rows_per_record, Workspace& workspace) const noexcept {
  const std::size_t outputs = classes();
  const RowView<T> sums = workspace.sums_view(x.count);
  forward(x, workspace.factors, sums, labels, workspace.scratch);
  const RowView<T> deltas = workspace.factors.back().deltas;
  for (std::size_t i = 0; i < x.count; ++i) {
    T* p = sums[i];
    softmax(p, outputs);
    for (std::size_t c = 0; c < rows_per_record; ++c) {
      T* delta = deltas[i * rows_per_record + c];
      const std::size_t label = labels == nullptr ? c : static_cast<std::size_t>(labels[i]);
      const T scale = labels == nullptr ? std::sqrt(p[c]) : T{1};
      for (std::size_t j = 0; j < outputs; ++j) {
        delta[j] = scale * (p[j] - (j == label ? T{1} : T{0}));
      }
    }
  }
  backward(x.count, rows_per_record, workspace);
}

// Writes every layer's inputs, and the last layer's sums.
template <class T>
void Network<T>::forward(RowView<const T> x, std::span<const LayerFactors<T>> factors,
                         RowView<T> last_sums, const std::int64_t* labels,
                         const AlignedArray<T>& scratch) const noexcept {
  for (std::size_t i = 0; i < x.count; ++i) {
    T* input = factors[0].inputs[i];
    // A record that cannot be used goes through all layers as NaN, like any other record.
    if (usable(x[i], labels == nullptr ? nullptr : labels + i)) {
      std::copy_n(x[i], inputs(), input);
    } else {
      std::fill_n(input, inputs(), std::numeric_limits<T>::quiet_NaN());
    }
    input[inputs()] = T{1};
  }
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    const bool last = l + 1 == layers_.size();
    const RowView<T> sums = last ? last_sums : factors[l + 1].inputs.subrows(0, x.count);
    for (std::size_t i = 0; i < x.count; ++i) {
      std::copy(layer.bias.begin(), layer.bias.end(), sums[i]);
    }
    layer.forward.template multiply_serial<T>(factors[l].inputs.subrows(0, x.count), sums, true,
                                              {scratch.data(), scratch.size()});
    if (last) continue;
    for (std::size_t i = 0; i < x.count; ++i) {
      activate(sums[i], layer.outputs, activation_);
      sums[i][layer.outputs] = T{1};
    }
  }
}

// From the last layer's deltas to those of all layers before it.
template <class T>
void Network<T>::backward(std::size_t records, std::size_t rows_per_record,
                          Workspace& workspace) const noexcept {
  const std::size_t rows = records * rows_per_record;
  for (std::size_t l = layers_.size() - 1; l > 0; --l) {
    const LayerFactors<T>& after = workspace.factors[l];
    const RowView<T> deltas = workspace.factors[l - 1].deltas.subrows(0, rows);
    layers_[l].backward.template multiply_serial<T>(
        after.deltas.subrows(0, rows), deltas, false,
        {workspace.scratch.data(), workspace.scratch.size()});
    for (std::size_t r = 0; r < rows; ++r) {
      multiply_by_derivative(deltas[r], after.inputs[r / rows_per_record], layers_[l].inputs,
                             activation_);
    }
  }
}

template <class T>
bool Network<T>::usable(const T* record, const std::int64_t* label) const noexcept {
  bool good = label == nullptr || (*label >= 0 && static_cast<std::uint64_t>(*label) < classes());
  for (std::size_t j = 0; j < inputs(); ++j) good &= std::isfinite(record[j]);
  return good;
}

template class Network<float>;
template class Network<double>;

}  // namespace qexp
