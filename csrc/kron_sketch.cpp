#include "kron_sketch.hpp"

#include <bit>

#include "fwht.hpp"

namespace qexp {
namespace {

using namespace fwht_parts;

// H D x of one row of the factor, padded.
template <class T>
void transform_row(const KroneckerFactor<T>& factor, std::size_t row, T* target) {
  const T* const x = factor.rows + row * factor.length;
  transform(target, std::bit_ceil(factor.length), 0,
            [&](std::size_t offset, std::size_t count, T* leaf) {
              const std::size_t rest = factor.length > offset ? factor.length - offset : 0;
              const std::size_t given = std::min(count, rest);
              if (given > 0) {
                QEXP_DISPATCH(signed_scale<T>)
                (x + offset, factor.signs.data(), offset, given, T(1), leaf);
              }
              std::fill(leaf + given, leaf + count, T(0));
            });
}

}  // namespace

template <class T>
void kron_sketch(const KroneckerFactor<T>& left, const KroneckerFactor<T>& right, std::size_t m,
                 std::size_t positions, double scale, T* out, std::ptrdiff_t out_stride) {
  const std::size_t k = left.kept.size();
  const std::size_t n_left = std::bit_ceil(left.length), n_right = std::bit_ceil(right.length);
  const std::size_t work = positions * (k + n_left + n_right);
  const T factor = static_cast<T>(scale);
  parallel_for(m, 1 + 100'000 / (work + 1), [&](std::size_t begin, std::size_t end) {
    const Buffer<T> l = make_buffer<T>(n_left), r = make_buffer<T>(n_right);
    for (std::size_t i = begin; i < end; ++i) {
      T* const row = out + static_cast<std::ptrdiff_t>(i) * out_stride;
      std::fill(row, row + k, T(0));
      for (std::size_t t = 0; t < positions; ++t) {
        transform_row(left, i * positions + t, l.get());
        transform_row(right, i * positions + t, r.get());
        for (std::size_t j = 0; j < k; ++j) row[j] += l[left.kept[j]] * r[right.kept[j]];
      }
      for (std::size_t j = 0; j < k; ++j) row[j] *= factor;
    }
  });
}

template void kron_sketch<float>(const KroneckerFactor<float>&, const KroneckerFactor<float>&,
                                 std::size_t, std::size_t, double, float*, std::ptrdiff_t);
template void kron_sketch<double>(const KroneckerFactor<double>&, const KroneckerFactor<double>&,
                                  std::size_t, std::size_t, double, double*, std::ptrdiff_t);

}  // namespace qexp
