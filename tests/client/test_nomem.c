/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   no allocation that fails crashes, leaks or misleads; the connection goes on afterwards.
 * Method: connect, put, lookup, get and a job against the fake daemon, with the first, second, ...
 *         allocation failing, until none is left to fail. Leaks are for the address sanitizer. */
#include <check.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/mem.h"
#include "client/larder.h"
#include "tests/client/engine.h"
#include "tests/client/fake.h"

#define COUNT (3u * FAKE_BLOCK_TOKENS)

static struct engine engine;
static uint32_t tokens[COUNT];
static const struct larder_prompt prompt = {.tokens = tokens, .token_count = COUNT};

/* Remembers the first failure; each must be one that memory explains. */
static int note(int *first, int err)
{
    ck_assert_msg(err == 0 || err == -ENOMEM, "%d: %s", err, larder_last_error());
    if (*first == 0)
        *first = err;
    return err;
}

static int use(struct larder *larder, struct larder_model *model)
{
    int first = 0;
    struct larder_put_result stored;
    struct larder_lookup_result found;
    struct larder_get_result result;
    engine_prefill(&engine, tokens, COUNT);
    if (note(&first, larder_put(model, &stored, &prompt, &engine.layout, NULL)) == 0)
        ck_assert_uint_eq(stored.tokens, COUNT);
    (void)note(&first, larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT));
    engine_scramble(&engine);
    (void)note(&first, larder_get(model, &result, &prompt, &engine.layout, NULL));
    ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
    struct larder_job *job;
    engine_scramble(&engine);
    if (note(&first, larder_get_submit(model, &job, &result, &prompt, &engine.layout, NULL)) == 0) {
        (void)note(&first, larder_job_end(job));
        ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
    }
    struct larder_stat stat;
    (void)note(&first, larder_get_stat(larder, &stat));
    return first;
}

/* The whole life of a connection; false once nothing failed. */
static bool live(const struct fake *fake, uint64_t fail_at)
{
    int first = 0;
    struct larder *larder;
    struct larder_model *model;
    const struct larder_options options = {
        .socket = fake_socket(fake), .timeout_ms = 5000, .threads = 2};
    larder_mem_fail_at(fail_at);
    if (note(&first, larder_connect(&larder, &options)) == 0) {
        if (note(&first, larder_model_open(larder, &model, &engine.desc)) == 0) {
            (void)note(&first, use(larder, model));
            larder_mem_fail_at(0);
            ck_assert_int_eq(use(larder, model), 0);
            larder_model_close(model);
        }
        larder_close(larder);
    }
    larder_mem_fail_at(0);
    return first != 0;
}

START_TEST(test_each_allocation)
{
    struct fake *fake = fake_start();
    engine_open(&engine, ENGINE_PLAIN, LARDER_BF16);
    uint64_t failed = 0;
    for (uint64_t n = 1; live(fake, n); n++) {
        failed++;
        fake_forget(fake);
    }
    ck_assert_uint_gt(failed, 15);
    engine_close(&engine);
    fake_stop(fake);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("nomem");
    TCase *tcase = tcase_create("nomem");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, test_each_allocation);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
