#include "fwht.hpp"
