#include "srht.hpp"
