#include "row_gemm.hpp"
