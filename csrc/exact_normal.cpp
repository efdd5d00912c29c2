#include "exact_normal.hpp"
