#include "lattice_sum.hpp"
