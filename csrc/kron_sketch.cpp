#include "kron_sketch.hpp"

#include "parallel.hpp"

namespace qexp {

template <class T>
void outer_entries(const T* left, std::size_t n_left, const T* right, std::size_t n_right,
                   std::size_t m, std::size_t positions, const KeptEntries& kept, T* out,
                   std::size_t out_stride) {
  const std::size_t k = kept.left.size();
  const T scale = static_cast<T>(kept.scale);
  parallel_for(m, 1 + 100'000 / (positions * k + 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      T* const row = out + i * out_stride;
      for (std::size_t j = 0; j < k; ++j) row[j] = 0;
      for (std::size_t t = 0; t < positions; ++t) {
        const T* const l = left + (i * positions + t) * n_left;
        const T* const r = right + (i * positions + t) * n_right;
        for (std::size_t j = 0; j < k; ++j) row[j] += l[kept.left[j]] * r[kept.right[j]];
      }
      for (std::size_t j = 0; j < k; ++j) row[j] *= scale;
    }
  });
}

template void outer_entries<float>(const float*, std::size_t, const float*, std::size_t,
                                   std::size_t, std::size_t, const KeptEntries&, float*,
                                   std::size_t);
template void outer_entries<double>(const double*, std::size_t, const double*, std::size_t,
                                    std::size_t, std::size_t, const KeptEntries&, double*,
                                    std::size_t);

}  // namespace qexp
