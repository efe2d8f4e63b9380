/* SPDX-License-Identifier: Apache-2.0 */
/* delays.h - threads that are held up, by chance, wherever they let go of a mutex, as on a machine
 * that has no time for them: what only holds because a thread went on at once breaks.
 *
 * A test links this with -Wl,--wrap=pthread_mutex_unlock. Threads: any.
 */
#ifndef LARDER_TESTS_DELAYS_H
#define LARDER_TESTS_DELAYS_H

#include <stdint.h>

/* From now on, after so many of a thousand unlocks, threads other than this one sleep for up to
 * `us_max`. 0: none, as at first. */
void delays_set(uint32_t permille, uint32_t us_max);

#endif
