/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: tenants take turns at the workers, whatever one of them queues; jobs of one tenant begin in
 * their order; what waits is counted; everything queued is run before the pool closes.
 * Method: a pool of one thread that is held up while jobs are queued, and the order of what it then
 * did. */
#include <check.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "daemon/workers.h"

#define JOBS_MAX 4000u

struct noted {
    struct job job; /* first */
    uint32_t owner;
    uint32_t number;
};

static struct workers *workers;
static sem_t gate;
static struct noted jobs[JOBS_MAX];
static const struct noted *order[JOBS_MAX];
static uint32_t ran; /* by the one worker, until it was closed */

static void wait_at_gate(struct job *job, struct scratch *scratch)
{
    (void)job;
    (void)scratch;
    sem_wait(&gate);
}

static void note(struct job *job, struct scratch *scratch)
{
    (void)scratch;
    order[ran++] = (const struct noted *)job;
}

static void submit(uint32_t number, uint32_t owner)
{
    jobs[number] = (struct noted){.job.run = note, .owner = owner, .number = number};
    workers_submit(workers, owner, &jobs[number].job);
}

static void setup(void)
{
    static struct job first;
    ran = 0;
    sem_init(&gate, 0, 0);
    ck_assert_int_eq(workers_open(&workers, 1), 0);
    first.run = wait_at_gate;
    workers_submit(workers, WORKERS_OWN, &first);
    while (workers_waiting(workers, WORKERS_OWN) > 0)
        continue;
}

static void finish(void)
{
    sem_post(&gate);
    workers_close(workers);
}

/* A tenant has a thousand jobs queued; another's few come in between, one after each of its own. */
START_TEST(a_flood_waits_for_itself)
{
    for (uint32_t i = 0; i < 1000; i++)
        submit(i, 3);
    for (uint32_t i = 1000; i < 1010; i++)
        submit(i, 700);
    submit(1010, WORKERS_OWN);
    ck_assert_uint_eq(workers_waiting(workers, 3), 1000);
    ck_assert_uint_eq(workers_waiting(workers, 700), 10);
    ck_assert_uint_eq(workers_waiting(workers, 4), 0);
    finish();
    ck_assert_uint_eq(ran, 1011);
    ck_assert_uint_eq(order[1]->number, 1000);
    ck_assert_uint_eq(order[2]->number, 1010);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 22; i++)
        seen += order[i]->owner == 700;
    ck_assert_uint_eq(seen, 10);
}
END_TEST

/* Owners by chance: the order of each is kept, and no one waits for two of another. */
START_TEST(any_mixture)
{
    unsigned state = (unsigned)_i;
    uint32_t left[8] = {0};
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        uint32_t owner = (uint32_t)rand_r(&state) % 8;
        owner = owner * owner / 8;
        left[owner]++;
        submit(i, owner);
    }
    finish();
    ck_assert_uint_eq(ran, JOBS_MAX);
    uint32_t last[8] = {0};
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const uint32_t owner = order[i]->owner;
        ck_assert(last[owner] <= order[i]->number);
        last[owner] = order[i]->number;
        left[owner]--;
        if (i > 0 && order[i - 1]->owner == owner) {
            for (uint32_t other = 0; other < 8; other++)
                ck_assert(other == owner || left[other] == 0);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_workers");
    TCase *tcase = tcase_create("workers");
    tcase_add_checked_fixture(tcase, setup, NULL);
    tcase_add_test(tcase, a_flood_waits_for_itself);
    tcase_add_loop_test(tcase, any_mixture, 1, 11);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
