#include "networks.hpp"
