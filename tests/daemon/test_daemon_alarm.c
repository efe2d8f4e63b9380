/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   after a failed sync nothing is acknowledged durable and nothing new is taken, not even
 *         when the disk is well again; what was durable is served on and is there after a restart;
 *         log and `larder status` raise the alarm. A stop ends well whatever the disk is at.
 * Method: larderd with failing_sync preloaded, over raw frames.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/daemon/fixture.h"
#include "tests/daemon/peer.h"

static struct fixture fixture;

static int status_code(void)
{
    char program[512];
    char line[1024];
    fixture_program(program, "larder");
    snprintf(line, sizeof(line), "%s --socket %s status > %s/status", program,
             fixture.control_socket, fixture.directory);
    int status = system(line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_stored(struct peer *peer, const struct block *blocks, uint32_t count)
{
    struct wire_get_ok ok;
    struct wire_ref refs[8];
    struct wire_loaded loaded;
    uint64_t bytes = peer_kv_bytes(peer, PEER_BLOCK_TOKENS);
    uint8_t *wanted = malloc(bytes);
    uint8_t *got = malloc(bytes);
    uint64_t request = peer_get(peer, blocks, count, &ok, refs, &loaded);
    ck_assert_uint_eq(loaded.loaded, count);
    for (uint32_t i = 0; i < count; i++) {
        peer_fill_kv(wanted, bytes, 10 + i);
        ck_assert_int_eq(peer_read(peer, &refs[i], &blocks[i], got, bytes), 0);
        ck_assert_mem_eq(wanted, got, bytes);
    }
    peer_release(peer, request);
    free(wanted);
    free(got);
}

START_TEST(failed_sync)
{
    char trigger[128];
    char preload[512];
    struct peer peer;
    struct block blocks[6];
    fixture_prepare(&fixture, NULL);
    snprintf(trigger, sizeof(trigger), "%s/fail", fixture.directory);
    fixture_program(preload, "tests/failing_sync.so");
    setenv("LARDER_TEST_FAIL_SYNC", trigger, 1);
    setenv("LD_PRELOAD", preload, 1);
    fixture_restart(&fixture);
    unsetenv("LD_PRELOAD");

    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 6, 1);
    peer_put_chain(&peer, blocks, 3, 10, LARDER_DURABLE);
    ck_assert_int_eq(status_code(), 0);
    close(open(trigger, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = calloc(1, bytes);
    ck_assert_int_lt(peer_put(&peer, &blocks[3], kv, LARDER_DURABLE, NULL, NULL), 0);

    /* The disk is well again: a sync that failed may have lost what it was for, so that no later
     * one is believed. */
    ck_assert_int_eq(unlink(trigger), 0);
    struct block other;
    peer_chain(&peer, &other, 1, 99);
    ck_assert_int_eq(peer_put(&peer, &other, kv, LARDER_DURABLE, NULL, NULL), LARDER_EREADONLY);
    ck_assert_int_eq(peer_put(&peer, &other, kv, LARDER_CACHED, NULL, NULL), LARDER_EREADONLY);
    free(kv);
    check_stored(&peer, blocks, 3);
    ck_assert_int_eq(status_code(), 1);
    const struct timespec moment = {.tv_nsec = 20000000};
    for (int i = 0; i < 250 && !fixture_log_has(&fixture, "ALARM"); i++)
        nanosleep(&moment, NULL);
    ck_assert(fixture_log_has(&fixture, "ALARM"));
    peer_close(&peer);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);

    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    check_stored(&peer, blocks, 3);
    ck_assert_int_eq(status_code(), 0);
    peer_close(&peer);
    peer_check_served(fixture.socket, 5);
    fixture_stop(&fixture);
}
END_TEST

/* SIGTERM while a scrub reads: that read ends with the store, and the daemon ends well. */
START_TEST(stop_in_the_middle_of_a_scrub)
{
    char trigger[128];
    char preload[512];
    char line[1100];
    struct peer peer;
    struct block blocks[3];
    fixture_start(&fixture, NULL);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    snprintf(trigger, sizeof(trigger), "%s/slow", fixture.directory);
    fixture_program(preload, "tests/failing_sync.so");
    setenv("LARDER_TEST_SLOW_READ", trigger, 1);
    setenv("LD_PRELOAD", preload, 1);
    fixture_restart(&fixture);
    unsetenv("LD_PRELOAD");
    peer_open(&peer, fixture.socket);
    peer_chain(&peer, blocks, 3, 1);
    peer_put_chain(&peer, blocks, 3, 10, LARDER_DURABLE);
    peer_close(&peer);
    close(open(trigger, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    fixture_program(preload, "larder");
    snprintf(line, sizeof(line), "%s --socket %s scrub --background > %s/scrub", preload,
             fixture.control_socket, fixture.directory);
    ck_assert_int_eq(system(line), 0);
    /* Two ticks of the daemon: the first record is being read by then, or it is not and nothing is
     * tested. */
    usleep(300000);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    unlink(trigger);
    fixture_restart(&fixture);
    peer_open(&peer, fixture.socket);
    check_stored(&peer, blocks, 3);
    peer_close(&peer);
    fixture_stop(&fixture);
    unsetenv("LARDER_TEST_SLOW_READ");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_alarm");
    TCase *tests = tcase_create("alarm");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, failed_sync);
    tcase_add_test(tests, stop_in_the_middle_of_a_scrub);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
