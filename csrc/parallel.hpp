// Threads for the kernels: a count, and a loop over ranges.
//
// Threads are started for one loop and joined at its end. Nothing idles between calls, so nothing
// spins beside a BLAS pool, and a forked child needs no repair; starting costs some ten
// microseconds, which `grain` keeps small beside the work.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace qexp {

// Initially OMP_NUM_THREADS where that is set, else the processors this process may run on.
int num_threads() noexcept;
void set_num_threads(int count) noexcept;

// Calls body(begin, end) on disjoint ranges that cover [0, count), at least `grain` items each.
// The split depends on the number of threads; results must not. An exception (a kernel's only one
// is a failed allocation) reaches the caller once every range has ended.
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
  std::vector<std::exception_ptr> failures(parts);
  const auto run = [&](std::size_t i) noexcept {
    try {
      body(bound(i), bound(i + 1));
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> workers;
    workers.reserve(parts - 1);
    std::size_t started = 1;
    try {
      for (; started < parts; ++started) workers.emplace_back(run, started);
    } catch (const std::system_error&) {
      // No more threads to be had: the caller's own does the rest.
    }
    run(0);
    for (; started < parts; ++started) run(started);
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace qexp
