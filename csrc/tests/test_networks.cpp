#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "networks.hpp"
#include "parallel.hpp"
#include "random_values.hpp"

namespace {

using qexp::Activation;
using qexp::Network;
using qexp::RowView;
using qexp::testing::random_values;

template <class T>
RowView<T> view(std::vector<T>& values, std::size_t columns) {
  return {values.data(), values.size() / columns, static_cast<std::ptrdiff_t>(columns)};
}

template <class T>
RowView<const T> view(const std::vector<T>& values, std::size_t columns) {
  return {values.data(), values.size() / columns, static_cast<std::ptrdiff_t>(columns)};
}

double loss(const std::vector<std::size_t>& sizes, Activation activation,
            const std::vector<double>& weights, const std::vector<double>& x, std::size_t label) {
  const Network<double> network(sizes, activation, weights);
  std::vector<double> out(sizes.back());
  network.log_probabilities(view(x, x.size()), view(out, out.size()));
  return -out[label];
}

}  // namespace

TEST_CASE("gradient rows agree with central differences of the loss") {
  for (const std::vector<std::size_t>& sizes :
       {std::vector<std::size_t>{3, 2}, {4, 5, 3}, {2, 4, 3, 3}}) {
    for (Activation activation : {Activation::tanh, Activation::relu}) {
      auto weights = random_values<double>(Network<double>::count_parameters(sizes), 1);
      const auto x = random_values<double>(sizes[0], 2);
      const std::vector<std::int64_t> label{1};
      const Network<double> network(sizes, activation, weights);
      std::vector<double> row(weights.size());
      network.gradient_rows(view(x, x.size()), label, view(row, row.size()));
      for (std::size_t j = 0; j < weights.size(); ++j) {
        const double centre = weights[j], step = 1e-6;
        weights[j] = centre + step;
        const double above = loss(sizes, activation, weights, x, 1);
        weights[j] = centre - step;
        const double below = loss(sizes, activation, weights, x, 1);
        weights[j] = centre;
        CHECK(std::abs(row[j] - (above - below) / (2 * step)) < 1e-7);
      }
    }
  }
}

TEST_CASE("rows depend neither on threads nor on neighbours, and NaN stays in its row") {
  const std::vector<std::size_t> sizes{20, 30, 5};
  const std::size_t p = Network<float>::count_parameters(sizes), n = 1000;
  const Network<float> network(sizes, Activation::relu, random_values<float>(p, 1));
  auto x = random_values<float>(n * sizes[0], 2);
  std::vector<std::int64_t> labels(n);
  for (std::size_t i = 0; i < n; ++i) labels[i] = static_cast<std::int64_t>(i % 5);
  std::vector<float> reference(n * p);
  qexp::set_num_threads(1);
  network.gradient_rows(view(x, sizes[0]), labels, view(reference, p));

  x[17 * sizes[0] + 3] = std::numeric_limits<float>::infinity();
  labels[400] = 5;
  labels[401] = -1;
  for (int threads : {1, 2, 3}) {
    qexp::set_num_threads(threads);
    std::vector<float> rows(n * p);
    network.gradient_rows(view(x, sizes[0]), labels, view(rows, p));
    for (std::size_t i = 0; i < n; ++i) {
      if (i == 17 || i == 400 || i == 401) {
        bool all = true;
        for (std::size_t j = 0; j < p; ++j) all &= std::isnan(rows[i * p + j]);
        CHECK(all);
      } else {
        CHECK(std::memcmp(&rows[i * p], &reference[i * p], p * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("curvature rows are gradients scaled by the root of the probability") {
  const std::vector<std::size_t> sizes{6, 8, 3};
  const std::size_t p = Network<double>::count_parameters(sizes), n = 41;
  const Network<double> network(sizes, Activation::tanh, random_values<double>(p, 1));
  const auto x = random_values<double>(n * sizes[0], 2);
  std::vector<double> log_p(n * 3), rows(n * 3 * p), gradients(n * p);
  network.log_probabilities(view(x, 6), view(log_p, 3));
  network.curvature_rows(view(x, 6), view(rows, p));
  for (std::int64_t c = 0; c < 3; ++c) {
    const std::vector<std::int64_t> labels(n, c);
    network.gradient_rows(view(x, 6), labels, view(gradients, p));
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t r = i * 3 + static_cast<std::size_t>(c);
      for (std::size_t j = 0; j < p; ++j) {
        CHECK(std::abs(rows[r * p + j] - std::exp(0.5 * log_p[r]) * gradients[i * p + j]) < 1e-13);
      }
    }
  }
}
