#include "blas.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace qexp {
namespace {

// A dimension narrowed to the library's integer, with an address to pass as Fortran expects it.
template <class Int>
class Dimension {
 public:
  explicit Dimension(std::int64_t wide) : value_(static_cast<Int>(wide)) {
    if (wide < 0 || wide > std::numeric_limits<Int>::max()) {
      throw std::invalid_argument("a matrix dimension of " + std::to_string(wide) +
                                  " does not fit the " + std::to_string(8 * sizeof(Int)) +
                                  "-bit integers of the BLAS library");
    }
  }
  operator Int*() { return &value_; }

 private:
  Int value_;
};

template <class T, class Int>
const EntryPoints<Int, T>& entry_points(const BlasTable<Int>& table) {
  if constexpr (std::is_same_v<T, float>) {
    return table.f32;
  } else {
    return table.f64;
  }
}

// Fortran declares nothing const; these arguments are only read.
template <class T>
T* read_only(const T* p) {
  return const_cast<T*>(p);
}

// The strides of an empty or one-line matrix mean nothing, but BLAS still asks for plausible ones.
std::int64_t at_least(std::int64_t stride, std::int64_t lines) {
  return std::max<std::int64_t>({stride, lines, 1});
}

void check_width(int declared, void (*dasum)(), const std::string& provider) {
  const int actual = detect_integer_bits(dasum);
  if (actual != declared) {
    throw std::runtime_error("the BLAS of provider '" + provider + "' was declared with " +
                             std::to_string(declared) + "-bit integers but reads " +
                             std::to_string(actual) + "-bit ones");
  }
}

std::atomic<const Blas*> current{nullptr};

void publish(Blas blas) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<const Blas>> ever_bound;
  const std::lock_guard lock(mutex);
  ever_bound.push_back(std::make_unique<const Blas>(std::move(blas)));
  current.store(ever_bound.back().get(), std::memory_order_release);
}

}  // namespace

int detect_integer_bits(void (*dasum)()) noexcept {
  // The first half of this length reads 1 (or 0), the whole less than 1 (or 1), depending on the
  // byte order; so exactly one of the two widths sums one element.
  constexpr bool little = std::endian::native == std::endian::little;
  std::int64_t n = little ? -(std::int64_t{1} << 32) + 1 : 1;
  std::int64_t incx = 1;
  double x = -1;
  const auto sum = reinterpret_cast<double (*)(std::int64_t*, double*, std::int64_t*)>(dasum);
  const bool summed = sum(&n, &x, &incx) == 1;
  return summed == little ? 32 : 64;
}

Blas::Blas(std::string provider, BlasTable<std::int32_t> table)
    : provider_(std::move(provider)), table_(table) {
  check_width(32, reinterpret_cast<void (*)()>(table.dasum), provider_);
}

Blas::Blas(std::string provider, BlasTable<std::int64_t> table)
    : provider_(std::move(provider)), table_(table) {
  check_width(64, reinterpret_cast<void (*)()>(table.dasum), provider_);
}

template <class T>
void Blas::gemm(Transpose transa, Transpose transb, std::int64_t m, std::int64_t n, std::int64_t k,
                T alpha, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c,
                std::int64_t ldc) const {
  std::visit(
      [&]<class Int>(const BlasTable<Int>& table) {
        using D = Dimension<Int>;
        char ta = static_cast<char>(transa), tb = static_cast<char>(transb);
        lda = at_least(lda, transa == Transpose::no ? m : k);
        ldb = at_least(ldb, transb == Transpose::no ? k : n);
        entry_points<T>(table).gemm(&ta, &tb, D(m), D(n), D(k), &alpha, read_only(a), D(lda),
                                    read_only(b), D(ldb), &beta, c, D(at_least(ldc, m)));
      },
      table_);
}

template <class T>
void Blas::syrk(Triangle uplo, Transpose trans, std::int64_t n, std::int64_t k, T alpha, const T* a,
                std::int64_t lda, T beta, T* c, std::int64_t ldc) const {
  std::visit(
      [&]<class Int>(const BlasTable<Int>& table) {
        using D = Dimension<Int>;
        char u = static_cast<char>(uplo), t = static_cast<char>(trans);
        lda = at_least(lda, trans == Transpose::no ? n : k);
        entry_points<T>(table).syrk(&u, &t, D(n), D(k), &alpha, read_only(a), D(lda), &beta, c,
                                    D(at_least(ldc, n)));
      },
      table_);
}

template <class T>
void Blas::trsm(Side side, Triangle uplo, Transpose transa, std::int64_t m, std::int64_t n,
                const T* a, std::int64_t lda, T* b, std::int64_t ldb) const {
  std::visit(
      [&]<class Int>(const BlasTable<Int>& table) {
        using D = Dimension<Int>;
        char s = static_cast<char>(side), u = static_cast<char>(uplo);
        char t = static_cast<char>(transa), diagonal_is_stored = 'N';
        T one = 1;
        lda = at_least(lda, side == Side::left ? m : n);
        entry_points<T>(table).trsm(&s, &u, &t, &diagonal_is_stored, D(m), D(n), &one, read_only(a),
                                    D(lda), b, D(at_least(ldb, m)));
      },
      table_);
}

template <class T>
std::int64_t Blas::potrf(Triangle uplo, std::int64_t n, T* a, std::int64_t lda) const {
  return std::visit(
      [&]<class Int>(const BlasTable<Int>& table) -> std::int64_t {
        using D = Dimension<Int>;
        char u = static_cast<char>(uplo);
        Int info = 0;
        entry_points<T>(table).potrf(&u, D(n), a, D(at_least(lda, n)), &info);
        return info;
      },
      table_);
}

#define QEXP_INSTANTIATE(T)                                                                     \
  template void Blas::gemm(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, T,   \
                           const T*, std::int64_t, const T*, std::int64_t, T, T*, std::int64_t) \
      const;                                                                                    \
  template void Blas::syrk(Triangle, Transpose, std::int64_t, std::int64_t, T, const T*,        \
                           std::int64_t, T, T*, std::int64_t) const;                            \
  template void Blas::trsm(Side, Triangle, Transpose, std::int64_t, std::int64_t, const T*,     \
                           std::int64_t, T*, std::int64_t) const;                               \
  template std::int64_t Blas::potrf(Triangle, std::int64_t, T*, std::int64_t) const;
QEXP_INSTANTIATE(float)
QEXP_INSTANTIATE(double)
#undef QEXP_INSTANTIATE

void bind_blas(Blas blas) {
  publish(std::move(blas));
}

bool blas_is_bound() {
#ifdef QEXP_BLAS_SYSTEM
  return true;
#else
  return current.load(std::memory_order_acquire) != nullptr;
#endif
}

const Blas& bound_blas() {
#ifdef QEXP_BLAS_SYSTEM
  static std::once_flag once;
  std::call_once(once, [] {
    if (current.load(std::memory_order_acquire) == nullptr) publish(system_blas());
  });
#endif
  const Blas* blas = current.load(std::memory_order_acquire);
  if (blas == nullptr) {
    throw std::runtime_error("no BLAS is bound yet; call qexp._blas.ensure_bound() first");
  }
  return *blas;
}

}  // namespace qexp
