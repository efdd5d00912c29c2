#include "lattice_sum.hpp"

#include <mutex>
#include <vector>

#include "parallel.hpp"

namespace qexp {

void lattice_sum(const double* rows, std::size_t m, std::size_t k, std::size_t row_stride,
                 const LatticeScale& scale, std::uint64_t* total) {
  const auto vector = QEXP_DISPATCH(lattice_vector);
  const auto add = QEXP_DISPATCH(lattice_add);
  std::mutex total_mutex;
  // A thread is worth starting for some hundred thousand entries.
  const std::size_t grain = 1 + 200'000 / (k + 1);
  parallel_for(m, grain, [&](std::size_t begin, std::size_t end) {
    std::vector<std::int64_t> z(k);
    std::vector<std::uint64_t> partial(k);
    for (std::size_t i = begin; i < end; ++i) {
      vector(rows + i * row_stride, k, scale, z.data());
      add(z.data(), k, partial.data());
    }
    const std::scoped_lock lock(total_mutex);
    for (std::size_t j = 0; j < k; ++j) total[j] += partial[j];
  });
}

}  // namespace qexp
