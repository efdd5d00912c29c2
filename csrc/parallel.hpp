// Threads for the kernels: a count, and a loop over ranges.
//
// Threads are started for one loop and joined at its end. Nothing idles between calls, so nothing
// spins beside a BLAS pool, and a forked child needs no repair; starting costs some ten
// microseconds, which `grain` keeps small beside the work.
#pragma once

#include <algorithm>
#include <cstddef>
#include <thread>
#include <vector>

namespace qexp {

// Initially OMP_NUM_THREADS where that is set, else the processors this process may run on.
int num_threads() noexcept;
void set_num_threads(int count) noexcept;

// Calls body(begin, end) on disjoint ranges that cover [0, count), at least `grain` items each.
// The body must not throw. The split depends on the number of threads; results must not.
template <class Body>
void parallel_for(std::size_t count, std::size_t grain, const Body& body) {
  if (count == 0) return;
  const std::size_t most = std::max<std::size_t>(1, count / std::max<std::size_t>(1, grain));
  const std::size_t parts = std::min<std::size_t>(most, static_cast<std::size_t>(num_threads()));
  if (parts == 1) {
    body(std::size_t{0}, count);
    return;
  }
  const auto bound = [=](std::size_t i) { return count / parts * i + std::min(i, count % parts); };
  std::vector<std::jthread> workers;
  workers.reserve(parts - 1);
  for (std::size_t i = 1; i < parts; ++i) {
    workers.emplace_back([&body, begin = bound(i), end = bound(i + 1)] { body(begin, end); });
  }
  body(std::size_t{0}, bound(1));
}

}  // namespace qexp
