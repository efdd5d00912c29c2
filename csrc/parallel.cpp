#include "parallel.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif
#ifndef _WIN32
#include <pthread.h>
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

// One job at a time, whose parts the caller and the workers take one by one.
class Pool {
 public:
  // False, and nothing done, while another thread's job, or the one that calls from within, has it.
  bool run(std::size_t parts, void (*call)(const void*, std::size_t), const void* context) {
    if (busy_.test_and_set(std::memory_order_acquire)) return false;
    std::unique_lock lock(mutex_);
    hire(parts - 1);
    call_ = call;
    context_ = context;
    parts_ = parts;
    taken_ = 1;  // the caller's own
    for (std::size_t i = 1; i < parts; ++i) wake_.notify_one();
    lock.unlock();
    call(context, 0);
    lock.lock();
    while (taken_ < parts_) work(lock);
    wait_for_workers(lock);
    parts_ = taken_ = 0;
    lock.unlock();
    busy_.clear(std::memory_order_release);
    return true;
  }

 private:
  void hire(std::size_t wanted) {
    try {
      for (; workers_ < wanted; ++workers_) {
        // Detached, and the pool is never destroyed: a process may end while they sleep.
        std::thread([this] { serve(); }).detach();
      }
    } catch (const std::system_error&) {
      // No more threads to be had: the others do the rest.
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return taken_ < parts_; });
      running_.fetch_add(1, std::memory_order_relaxed);
      while (taken_ < parts_) work(lock);
      if (running_.fetch_sub(1, std::memory_order_release) == 1) finished_.notify_one();
    }
  }

  void work(std::unique_lock<std::mutex>& lock) {
    const std::size_t part = taken_++;
    const auto call = call_;
    const auto context = context_;
    lock.unlock();
    call(context, part);
    lock.lock();
  }

  // Workers end within a moment of the caller where parts are equal: looking for so long as it
  // would take to fall asleep and be woken saves that.
  void wait_for_workers(std::unique_lock<std::mutex>& lock) {
    constexpr int looks = 512;
    lock.unlock();
    for (int i = 0; i < looks && running_.load(std::memory_order_acquire) > 0; ++i) relax();
    lock.lock();
    finished_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
  }

  static void relax() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // `yield` passes at once on most cores
#endif
  }

  std::atomic_flag busy_;
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  std::size_t workers_ = 0;
  std::size_t parts_ = 0, taken_ = 0;
  std::atomic<std::size_t> running_{0};
  void (*call_)(const void*, std::size_t) = nullptr;
  const void* context_ = nullptr;
};

// Its threads do not survive a fork, nor do locks that they held: the child gets a pool of its own.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
#ifndef _WIN32
    static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
    static_cast<void>(registered);
#endif
    Pool* const made = new Pool;
    if (the_pool.compare_exchange_strong(current, made, std::memory_order_acq_rel)) return *made;
    delete made;
  }
  return *current;
}

}  // namespace

void run_on_threads(std::size_t parts, void (*call)(const void*, std::size_t),
                    const void* context) {
  if (pool().run(parts, call, context)) return;
  // The pool is at work for another thread of the caller's.
  std::vector<std::jthread> threads;
  threads.reserve(parts - 1);
  std::size_t started = 1;
  try {
    for (; started < parts; ++started) threads.emplace_back(call, context, started);
  } catch (const std::system_error&) {
    // No more threads to be had: this one does the rest.
  }
  call(context, 0);
  for (; started < parts; ++started) call(context, started);
}

int num_threads() noexcept {
  return thread_count().load(std::memory_order_relaxed);
}

void set_num_threads(int count) noexcept {
  thread_count().store(std::max(1, count), std::memory_order_relaxed);
}

}  // namespace qexp
