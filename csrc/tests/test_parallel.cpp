#include <doctest/doctest.h>

#include <atomic>
#include <vector>

#include "parallel.hpp"

TEST_CASE("parallel_for visits every index once, whatever the number of threads") {
  for (int threads : {1, 2, 3, 7}) {
    qexp::set_num_threads(threads);
    for (std::size_t count : {0u, 1u, 2u, 5u, 64u, 1001u}) {
      std::vector<std::atomic<int>> visits(count);
      qexp::parallel_for(count, 1, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) ++visits[i];
      });
      for (const auto& v : visits) CHECK(v == 1);
    }
  }
}

TEST_CASE("the number of threads is at least one") {
  qexp::set_num_threads(-3);
  CHECK(qexp::num_threads() == 1);
}
