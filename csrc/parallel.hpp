// Threads for the kernels: a count, and loops over ranges.
//
// Workers are started by the first loop that wants them and sleep between loops; they never spin,
// so none is in the way of a BLAS pool. Waking one costs some twenty microseconds. (Starting a
// thread for every loop costs more than that: a new thread tends to begin on its parent's
// processor, and waits there until the scheduler moves it.) Nobody waits for a worker that has not
// begun: the caller does that part too. A forked child begins with no workers and starts its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <vector>

namespace qexp {

// Initially OMP_NUM_THREADS where that is set, else the processors this process may run on.
int num_threads() noexcept;
void set_num_threads(int count) noexcept;

// Calls call(context, i), which must not throw, once for every i in [0, parts), on this thread and
// on up to parts - 1 others.
void run_on_threads(std::size_t parts, void (*call)(const void* context, std::size_t i),
                    const void* context);

// Calls work(i) for i in [0, parts), at the same time where threads allow. An exception (a kernel's
// only one is a failed allocation) reaches the caller once every part has ended.
template <class Work>
void run_parts(std::size_t parts, const Work& work) {
  std::vector<std::exception_ptr> failures(parts);
  const auto run = [&](std::size_t i) noexcept {
    try {
      work(i);
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  run_on_threads(
      parts,
      [](const void* context, std::size_t i) { (*static_cast<const decltype(run)*>(context))(i); },
      &run);
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

// How many parts of at most b make a whole of a.
constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept {
  return (a + b - 1) / b;
}

// How many threads are worth starting for `count` items, at least `grain` of them a thread.
inline std::size_t worthwhile_threads(std::size_t count, std::size_t grain) {
  const std::size_t most = std::max<std::size_t>(1, count / std::max<std::size_t>(1, grain));
  return std::min<std::size_t>(most, static_cast<std::size_t>(num_threads()));
}

// Calls body(begin, end) on disjoint ranges that cover [0, count), one a thread, at least `grain`
// items each. The split depends on the number of threads; results must not.
template <class Body>
void parallel_for(std::size_t count, std::size_t grain, const Body& body) {
  if (count == 0) return;
  const std::size_t parts = worthwhile_threads(count, grain);
  if (parts == 1) {
    body(std::size_t{0}, count);
    return;
  }
  const auto bound = [=](std::size_t i) { return count / parts * i + std::min(i, count % parts); };
  run_parts(parts, [&](std::size_t i) { body(bound(i), bound(i + 1)); });
}

// The same in small ranges, of which a thread takes the next one whenever it is free: a thread that
// starts late, or shares its processor, then does less instead of being waited for. For bodies
// whose ranges cost nothing to begin.
template <class Body>
void parallel_for_balanced(std::size_t count, std::size_t grain, const Body& body) {
  if (count == 0) return;
  const std::size_t parts = worthwhile_threads(count, grain);
  if (parts == 1) {
    body(std::size_t{0}, count);
    return;
  }
  constexpr std::size_t ranges_a_thread = 16;
  const std::size_t step = std::max<std::size_t>(1, count / (parts * ranges_a_thread));
  std::atomic<std::size_t> next{0};
  run_parts(parts, [&](std::size_t) {
    for (;;) {
      const std::size_t begin = next.fetch_add(step, std::memory_order_relaxed);
      if (begin >= count) return;
      body(begin, std::min(count, begin + step));
    }
  });
}

}  // namespace qexp
