// Per-record gradients of a multilayer perceptron with softmax cross-entropy.
//
// Layer l maps a_l (the record's input, or the activations before) to W_l [a_l, 1]; W_l is
// (out, in + 1) with the bias as its last column, and the weights are the W_l one after another,
// row-major. The gradient of one record in W_l is the outer product delta_l [a_l, 1]^T, with
// delta_l the derivative of its loss in the layer's sums. The pairs (inputs, deltas) are called
// the factors of a record; gradient rows are written from them.
//
// Every result for a record depends on that record and the weights alone, bit for bit: products
// go through row_gemm, all else works row by row. A record that holds a NaN or an infinity, or a
// label outside 0..outputs-1, has NaN deltas and a NaN gradient row, and disturbs no other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "row_gemm.hpp"

namespace qexp {

enum class Activation { tanh, relu };

template <class T>
struct LayerFactors {
  RowView<T> inputs;  // (m, in + 1), the last column 1
  RowView<T> deltas;  // (m * rows_per_record, out)
};

template <class T>
class Network {
 public:
  // layer_sizes: inputs, hidden layers, outputs. weights.size() == count_parameters(layer_sizes).
  Network(std::span<const std::size_t> layer_sizes, Activation activation,
          std::span<const T> weights);
  static std::size_t count_parameters(std::span<const std::size_t> layer_sizes) noexcept;

  std::size_t layers() const noexcept { return layers_.size(); }
  std::size_t inputs(std::size_t layer = 0) const noexcept { return layers_[layer].inputs; }
  std::size_t outputs(std::size_t layer) const noexcept { return layers_[layer].outputs; }
  std::size_t classes() const noexcept { return layers_.back().outputs; }
  std::size_t parameters() const noexcept { return parameters_; }

  void log_probabilities(RowView<const T> x, RowView<T> out) const;

  // One row a record: the gradient at the record's label.
  void gradient_rows(RowView<const T> x, std::span<const std::int64_t> labels,
                     RowView<T> rows) const;
  void gradient_factors(RowView<const T> x, std::span<const std::int64_t> labels,
                        std::span<const LayerFactors<T>> factors) const;

  // classes() rows a record, one after another: sqrt(p_c) times the gradient at label c. The sum
  // of their outer products is the record's generalised Gauss-Newton matrix.
  void curvature_rows(RowView<const T> x, RowView<T> rows) const;
  void curvature_factors(RowView<const T> x, std::span<const LayerFactors<T>> factors) const;

 private:
  struct Layer {
    std::size_t inputs;
    std::size_t outputs;
    std::vector<T> bias;
    PackedMatrix<T> forward;   // (in, out)
    PackedMatrix<T> backward;  // (out, in)
  };
  struct Workspace;

  template <class Body>
  void for_each_block(std::size_t records, std::size_t rows_per_record, const Body& body) const;
  void write_rows(RowView<const T> x, const std::int64_t* labels, std::size_t rows_per_record,
                  RowView<T> rows) const;
  void write_factors(RowView<const T> x, const std::int64_t* labels, std::size_t rows_per_record,
                     std::span<const LayerFactors<T>> factors) const;
  void compute_factors(RowView<const T> x, const std::int64_t* labels, std::size_t rows_per_record,
                       Workspace& workspace) const noexcept;
  void forward(RowView<const T> x, std::span<const LayerFactors<T>> factors, RowView<T> last_sums,
               const std::int64_t* labels, const AlignedArray<T>& scratch) const noexcept;
  void backward(std::size_t records, std::size_t rows_per_record,
                Workspace& workspace) const noexcept;
  bool usable(const T* record, const std::int64_t* label) const noexcept;

  Activation activation_;
  std::size_t parameters_;
  std::vector<Layer> layers_;
};

}  // namespace qexp
