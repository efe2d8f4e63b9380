/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/planted.h"

enum larder_planted_bug larder_planted = LARDER_PLANTED_NONE;
