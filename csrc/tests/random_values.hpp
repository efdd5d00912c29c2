// Normal numbers for the tests of kernels that take rows.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

namespace qexp::testing {

template <class T>
std::vector<T> random_values(std::size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(count);
  for (T& v : values) v = static_cast<T>(normal(engine));
  return values;
}

}  // namespace qexp::testing
