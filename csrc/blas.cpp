#include "blas.hpp"
