#include "cholesky.hpp"
