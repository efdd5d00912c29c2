#pragma once

namespace qexp {}
