#include "gram.hpp"
