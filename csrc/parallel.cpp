#include "parallel.hpp"

#include <atomic>
#include <cstdlib>

#ifdef __linux__
#include <sched.h>
#endif

namespace qexp {
namespace {

int available_processors() noexcept {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int initial_threads() noexcept {
  // The value may be a list, one number for each nesting level; the first one counts.
  if (const char* value = std::getenv("OMP_NUM_THREADS")) {
    const long count = std::strtol(value, nullptr, 10);
    if (count > 0 && count <= 4096) return static_cast<int>(count);
  }
  return available_processors();
}

std::atomic<int>& thread_count() noexcept {
  static std::atomic<int> count{initial_threads()};
  return count;
}

}  // namespace

int num_threads() noexcept {
  return thread_count().load(std::memory_order_relaxed);
}

void set_num_threads(int count) noexcept {
  thread_count().store(std::max(1, count), std::memory_order_relaxed);
}

}  // namespace qexp
