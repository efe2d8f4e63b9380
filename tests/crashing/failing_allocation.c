/* SPDX-License-Identifier: Apache-2.0 */
/* failing_allocation.c - linked into larderd-failing: LARDER_FAIL_ALLOCATION=N makes allocation N
 * of the process fail, counted from its start. A run that has fewer says nothing; the log says how
 * many there were. */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"

static uint64_t fails;

static void __attribute__((constructor)) set_failure(void)
{
    const char *number = getenv("LARDER_FAIL_ALLOCATION");
    fails = number ? strtoull(number, NULL, 10) : 0;
    larder_mem_fail_at(fails);
}

static void __attribute__((destructor)) say_whether(void)
{
    if (fails > 0 && larder_mem_count() >= fails)
        fprintf(stderr, "allocation %llu failed, INJECTED\n", (unsigned long long)fails);
}
