#include "triangular.hpp"
