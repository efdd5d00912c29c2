#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "parallel.hpp"

namespace {

std::size_t sum_by_threads(std::size_t count) {
  std::atomic<std::size_t> sum{0};
  qexp::parallel_for_balanced(count, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) sum += i;
  });
  return sum;
}

}  // namespace

TEST_CASE("loops visit every index once, whatever the number of threads") {
  for (int threads : {1, 2, 3, 7, 2}) {
    qexp::set_num_threads(threads);
    for (std::size_t count : {0u, 1u, 2u, 5u, 64u, 1001u}) {
      std::vector<std::atomic<int>> equal(count), balanced(count);
      const auto visit = [](std::vector<std::atomic<int>>& visits) {
        return [&](std::size_t begin, std::size_t end) {
          for (std::size_t i = begin; i < end; ++i) ++visits[i];
        };
      };
      qexp::parallel_for(count, 1, visit(equal));
      qexp::parallel_for_balanced(count, 1, visit(balanced));
      for (const auto& v : equal) CHECK(v == 1);
      for (const auto& v : balanced) CHECK(v == 1);
    }
  }
}

TEST_CASE("a loop inside of a loop, and loops of several threads, all end") {
  qexp::set_num_threads(3);
  std::atomic<std::size_t> sum{0};
  qexp::parallel_for(6, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) sum += sum_by_threads(100);
  });
  CHECK(sum == 6 * 4950);

  std::vector<std::size_t> sums(4);
  {
    std::vector<std::jthread> callers;
    for (std::size_t& own : sums) {
      callers.emplace_back([&own] {
        for (int i = 0; i < 50; ++i) own += sum_by_threads(100);
      });
    }
  }
  for (std::size_t own : sums) CHECK(own == 50 * 4950);
}

TEST_CASE("an exception reaches the caller, and the threads serve on") {
  qexp::set_num_threads(3);
  for (std::size_t failing : {0u, 1u, 2u}) {
    CHECK_THROWS_AS(qexp::parallel_for(3, 1,
                                       [&](std::size_t begin, std::size_t) {
                                         if (begin == failing) throw std::runtime_error("failed");
                                       }),
                    std::runtime_error);
  }
  CHECK(sum_by_threads(100) == 4950);
}

// ThreadSanitizer forbids threads in the child of a process with threads.
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
TEST_CASE("a forked child has threads of its own") {
  qexp::set_num_threads(3);
  CHECK(sum_by_threads(100) == 4950);
  const pid_t child = fork();
  if (child == 0) _exit(sum_by_threads(100) == 4950 ? 0 : 1);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  CHECK(sum_by_threads(100) == 4950);
}
#endif

TEST_CASE("the number of threads is at least one") {
  qexp::set_num_threads(-3);
  CHECK(qexp::num_threads() == 1);
}
